"""WMT'14 English to French from the user's own files, encoded once into arrays that are mapped, not read."""

from pathlib import Path

from metalearn.registry import UserError
from tasks import wmt14_files
from tasks.config import Wmt14EnFrOptions
from tasks.encoded import Encoded, encode_once
from tasks.translation import Corpus
from tasks.wmt14_files import FOLDER, SPLITS

WHOLE = 30_000_000, 3003  # least training pairs of a whole copy, and the test pairs


def read(options: Wmt14EnFrOptions, data_dir: Path) -> Corpus:
    """The corpus; the first call learns pieces and encodes, which takes long. Raises UserError."""
    lacking = wmt14_files.missing(data_dir)
    if lacking:
        raise UserError(
            f"task wmt14_en_fr: {data_dir} lacks {'; '.join(lacking)}. Get the French-English parts of "
            "statmt.org/wmt14/translation-task.html, put them there, or name the folder that has "
            f"{FOLDER}/ by data_dir=PATH or METALEARN_DATA_DIR; 36 million pairs are not downloaded here"
        )
    files = {split: wmt14_files.files(data_dir / FOLDER, split) for split in SPLITS}
    encoded = encode_once(
        {
            split: lambda split=split: wmt14_files.pairs(files[split], keep_empty=split != "train")
            for split in SPLITS
        },
        wmt14_files.identity(files),
        options,
    )
    train, test = (len(encoded.parts[split].source) for split in ("train", "test"))
    whole = train >= WHOLE[0] and test == WHOLE[1]
    return _corpus(encoded, f"{train} training pairs and {test} test pairs, found in data_dir", whole)


def _corpus(encoded: Encoded, counts: str, whole: bool) -> Corpus:
    return Corpus(
        parts=encoded.parts,
        references=encoded.references,
        pieces=encoded.pieces,
        source="Bojar et al. 2014, Findings of WMT'14: training data and newstest 2012, 2013, 2014",
        licence="that of each part, see statmt.org/wmt14: research",
        provenance=counts if whole else f"{counts}: not WMT'14, not comparable",
        digest=encoded.digest,
        comparable=whole,
    )
