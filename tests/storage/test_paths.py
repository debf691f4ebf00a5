import hashlib

import pytest

from wan_ray.storage.paths import clip_key, file_stem, record_key


@pytest.mark.parametrize("id", ["a", "city-night_001.v2", "0", "x" * 100])
def test_a_plain_id_is_its_own_file_stem(id):
    assert file_stem(id) == id


@pytest.mark.parametrize(
    ("id", "slug"),
    [
        ("夜晚的城市", "row"),
        ("scene 1/take é", "scene-1-take-e"),
        ("../../etc/passwd", "etc-passwd"),
        (".hidden", "hidden"),
        ("a\n", "a"),
        ("x" * 101, "x" * 60),
        ("a-0123456789abcdef", "a-0123456789abcdef"),
    ],
)
def test_any_other_id_becomes_a_readable_stem_with_its_hash(id, slug):
    assert file_stem(id) == f"{slug}-{hashlib.sha256(id.encode()).hexdigest()[:16]}"


def test_an_id_made_to_look_like_anothers_stem_gets_another_stem():
    forged = file_stem("夜晚")
    assert file_stem(forged) != forged
    assert len({file_stem("夜晚"), file_stem(forged), file_stem(file_stem(forged))}) == 3


def test_a_clip_is_named_after_its_content():
    assert clip_key("a", "0123456789abcdef" * 4, ".mp4") == "clips/a.0123456789ab.mp4"
    assert record_key("a") == "records/a.json"
