"""Kernels are built anew when what they include has changed."""

import pytest
import torch

from metalearn import kernels

SOURCE = '#include "kernels.h"\nREAL answer(void) { return ANSWER; }\n'


def test_a_changed_header_is_another_library(tmp_path, monkeypatch):
    if kernels._compiler() is None:
        pytest.skip("no C compiler here")
    monkeypatch.setenv("METALEARN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(kernels, "HEADERS", tmp_path)
    (tmp_path / "source.c").write_text(SOURCE)
    for answer in ("1", "2"):
        (tmp_path / "kernels.h").write_text(f"#define ANSWER {answer}\n")
        kernels.build.cache_clear()
        assert kernels.build(torch.float32, tmp_path / "source.c").reason == ""
        kernels.build.cache_clear()
    assert len(list((tmp_path / "cache/kernels").iterdir())) == 2
