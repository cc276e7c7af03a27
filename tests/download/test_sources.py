"""Tests of sources: targets, equality and checksums."""

import pytest

from unskew.download.sources import Source


def test_targets_are_the_members_of_an_archive_or_the_file():
    assert Source("labels.txt").targets == ("labels.txt",)
    assert Source("a.tar", makes={"images": "2750", ".": "all"}).targets == ("2750", "all")


def test_a_source_is_a_value():
    source = Source("a.tar", ("https://a",), makes={"images": "2750"}, checksum="md5:0")
    assert source == Source("a.tar", ("https://a",), makes=(("images", "2750"),), checksum="md5:0")
    assert len({source, Source("a.tar", ("https://a",), makes={"images": "2750"}, checksum="md5:0")}) == 1


@pytest.mark.parametrize("checksum", ["sha1:0a", "0a1b", "MD5:0a"])
def test_a_checksum_without_a_known_algorithm_is_refused(checksum):
    with pytest.raises(ValueError, match=rf"a\.tar .*'{checksum}'"):
        Source("a.tar", checksum=checksum)
