import pyarrow as pa
import pytest

from wan_ray.report.counts import MAX_CAUSES, MAX_LABEL_VALUES, count, shared_text
from wan_ray.report.rows import read_rows, while_parts_stay
from wan_ray.storage.blob import Store


@pytest.fixture
def counted(written):
    def read(records):
        store = Store(written(records))
        return while_parts_stay(store, lambda parts: count(store, read_rows(store, parts, {})))

    return read


@pytest.mark.parametrize(
    ("message", "shared"),
    [
        (
            "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 3 has 79GiB",
            "CUDA out of memory. Tried to allocate # GiB. GPU # has #",
        ),
        (
            "num_frames: 80 is not 4n+1, the VAE's step; use 77",
            "num_frames: # is not #+#, the VAE's step; use #",
        ),
        ("image: '/data/my car 7.png' does not exist", "image: '...' does not exist"),
        ("task 'it\\'s' is no task", "task '...' is no task"),
        ('ffmpeg failed on "it\'s.mp4" (exit 1)', "ffmpeg failed on '...' (exit #)"),
        ("no such file: /mnt/a/b.mp4, give another", "no such file: ..., give another"),
        ("cannot read s3://bucket/k%20/a.mp4: reset", "cannot read ...: reset"),
        ("rank 0af3-77 died\n  at 0x7ffe", "rank # died at #"),
        ("读取 'a' 失败", "读取 '...' 失败"),
    ],
)
def test_what_varies_between_like_messages_is_left_out(message, shared):
    assert shared_text(pa.array([message])).to_pylist() == [shared]


def test_a_thousand_like_messages_are_one_cause_with_one_example(counted, record):
    records = [record(f"c{i}", row=i, error_message=f"rank {i} of '/m/{i}' died") for i in range(1000)]
    (cause,) = counted(records).causes
    assert (cause.count, cause.stage, cause.type) == (1000, "denoise", "StageError")
    assert cause.text == "rank # of '...' died"
    assert cause.message == f"rank {cause.row} of '/m/{cause.row}' died"
    assert cause.id == f"c{cause.row}"


def test_equal_messages_are_shown_as_they_are(counted, record):
    (cause,) = counted([record(name, error_message="num_frames: 80 is no 4n+1") for name in "ab"]).causes
    assert (cause.count, cause.text) == (2, "num_frames: 80 is no 4n+1")


def test_one_message_at_two_stages_or_of_two_types_is_two_causes_the_common_one_first(counted, record):
    records = [
        record("a", error_message="no"),
        record("b", error_message="no", error_stage="decode"),
        record("c", error_message="no", error_type="OSError"),
        record("d", error_message="no", error_type="OSError"),
    ]
    causes = counted(records).causes
    assert [(c.count, c.type) for c in causes] == [(2, "OSError"), (1, "StageError"), (1, "StageError")]


def test_causes_without_end_end_in_one_more(counted, record):
    letters = [chr(0x4E00 + i) for i in range(MAX_CAUSES + 50)]
    causes = counted([record(letter, error_message=letter) for letter in letters]).causes
    assert len(causes) == MAX_CAUSES + 1
    assert (causes[0].count, causes[0].text) == (50, "(other messages)")


def test_a_password_is_masked_also_where_the_message_is_cut(counted, record):
    for length in range(200, 300, 5):
        message = "x" * length + " cannot open s3://me:hunter2hunter2@host/a"
        (cause,) = counted([record("a", error_message=message)]).causes
        assert "hunter2" not in cause.message + cause.text


def test_labels_are_counted_by_key_value_and_outcome(counted, record):
    records = [
        record("a", labels={"weather": "rain", "time": "夜"}),
        record("b", labels={"weather": "rain"}, error_message="no"),
        record("c", labels={"weather": "fog"}),
        record("d"),
    ]
    labels = counted(records).labels
    assert {key: values.most_common() for key, values in labels.items()} == {
        "time": [("夜", 1, 0)],
        "weather": [("rain", 1, 1), ("fog", 1, 0)],
    }


def test_a_label_with_a_value_of_its_own_for_each_row_is_said_to_be_open(counted, record):
    labels = counted([record(f"r{i}", labels={"i": f"v{i}", "all": "x"}) for i in range(MAX_LABEL_VALUES + 1)]).labels
    assert labels["i"].is_open
    assert len(labels["i"].ok) == MAX_LABEL_VALUES
    assert not labels["all"].is_open
