import base64
import os
import uuid

import fsspec
import pytest

from wan_ray.errors import RequestError, StorageError
from wan_ray.media.source import is_folder, likeness, local_file, looks_like_image, name_of, read_folder, read_source

DATA = bytes(range(256)) * 4


@pytest.fixture
def memory_url():
    """A folder of its own in fsspec's memory filesystem, which stands for a bucket."""
    folder = f"memory://{uuid.uuid4().hex}"
    yield folder
    fsspec.filesystem("memory").rm(folder.removeprefix("memory:/"), recursive=True)


def put(url, data=DATA):
    with fsspec.open(url, "wb") as file:
        file.write(data)
    return url


def every_kind(tmp_path, memory_url):
    path = tmp_path / "a b%.bin"
    path.write_bytes(DATA)
    encoded = base64.b64encode(DATA).decode()
    return [
        DATA,
        str(path),
        f"file://{path}",
        put(f"{memory_url}/a.bin"),
        f"data:application/octet-stream;base64,{encoded}",
        "DATA:;base64," + "\n".join(encoded[i : i + 76] for i in range(0, len(encoded), 76)),
        "data:," + "".join(f"%{byte:02x}" for byte in DATA),
    ]


def test_every_kind_of_source_gives_the_same_bytes(tmp_path, memory_url):
    for source in every_kind(tmp_path, memory_url):
        assert read_source(source, what="image") == DATA
        with local_file(source, what="control_video") as path:
            assert path.read_bytes() == DATA


def test_a_local_file_is_used_where_it_lies_and_a_copy_is_gone_afterwards(tmp_path, memory_url):
    own = tmp_path / "a.bin"
    own.write_bytes(DATA)
    with local_file(str(own), what="control_video") as path:
        assert path == own
    with local_file(put(f"{memory_url}/a.bin"), what="control_video") as path:
        copy = path
    assert own.exists()
    assert not copy.exists()


@pytest.mark.parametrize("read", [read_source, lambda *args, **kwargs: local_file(*args, **kwargs).__enter__()])
def test_a_limit_holds_for_every_kind_of_source(tmp_path, memory_url, read):
    for source in every_kind(tmp_path, memory_url):
        with pytest.raises(RequestError, match=rf"^image: .*more than {len(DATA) - 1} bytes; make it smaller"):
            read(source, what="image", max_bytes=len(DATA) - 1)


def test_a_huge_file_is_refused_without_being_read(tmp_path):
    with (tmp_path / "huge.mp4").open("wb") as file:
        file.truncate(1 << 40)  # a hole: takes no room
    with pytest.raises(RequestError, match=r"huge\.mp4' is 1099511627776 bytes, more than 1073741824 bytes"):
        local_file(str(tmp_path / "huge.mp4"), what="control_video").__enter__()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        (b"", "is empty"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png;base64,@@@@", "no valid base64"),
        ("data:image/png;base64,QUJ", "no valid base64"),
        ("data:image/png;base64", "no data: URL"),
        ("nowhere/a.png", "does not exist"),
        ("memory://nowhere/a.png", "does not exist"),
        ("ftpx://host/a.png", "no path or URL"),
        ("oss://bucket/a.png", "needs a package|no path or URL"),
        ("iVBORw0KGgo" * 1000, "is no path"),
        ("a\0.png", "is no path"),
        ("/dev/zero", "device or pipe"),
        ("/dev/null/a.png", "does not exist"),
        (17, "17 is neither text nor bytes"),
        (None, "None is neither text nor bytes"),
    ],
)
def test_what_cannot_be_read_says_field_value_and_reason_in_one_short_line(source, reason):
    with pytest.raises(RequestError, match=rf"^image: .*({reason})") as caught:
        read_source(source, what="image")
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def test_an_empty_file_is_refused_wherever_it_lies(tmp_path, memory_url):
    (tmp_path / "a.png").touch()
    for source in (str(tmp_path / "a.png"), put(f"{memory_url}/a.png", b"")):
        for read in (read_source, lambda *args, **kwargs: local_file(*args, **kwargs).__enter__()):
            with pytest.raises(RequestError, match="is empty"):
                read(source, what="image")


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(RequestError, match="device or pipe"):
        read_source(str(tmp_path / "pipe.mp4"), what="control_video")


def test_a_file_that_may_not_be_read_says_so(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(DATA)
    if os.getuid() == 0:  # root may read anything
        monkeypatch.setattr("fsspec.implementations.local.LocalFileSystem.open", _refuse)
    else:
        path.chmod(0)
    with pytest.raises(RequestError, match="may not be read by the user that renders"):
        read_source(str(path), what="image")


def _refuse(*_, **__):
    raise PermissionError(13, "Permission denied")


def test_a_store_that_fails_is_no_fault_of_the_row(memory_url, monkeypatch):
    def broken(*_, **__):
        raise ConnectionResetError(104, "reset by peer")

    url = put(f"{memory_url}/a.png")
    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.open", broken)
    with pytest.raises(StorageError, match="reset by peer"):
        read_source(url, what="image")


def test_a_folder_is_no_file(tmp_path, memory_url):
    put(f"{memory_url}/clip/0.png")
    for source in (str(tmp_path), f"{memory_url}/clip"):
        with pytest.raises(RequestError, match="is a folder; give one file"):
            read_source(source, what="image")


def test_a_password_in_a_url_is_not_told():
    assert name_of("ftp://me:secret@host/a.png") == "'ftp://me:***@host/a.png'"
    assert name_of("data:image/png;base64," + "A" * 1000) == "'data:image/png;base64,AAAAAAAAAAAAAAAAAA'"
    assert name_of(DATA) == "<1024 bytes>"
    assert name_of("s3://bucket/" + "a" * 200 + "/clip.mp4") == f"'s3://bucket/{'a' * 12}...{'a' * 44}/clip.mp4'"


def test_a_folders_images_come_in_the_order_of_their_numbers(tmp_path, memory_url):
    names = ["f10.png", "f9.png", "f100.PNG", "f1.png"]
    for name in [*names, ".hidden.png", "times.csv"]:
        (tmp_path / name).write_bytes(name.encode())
        put(f"{memory_url}/{name}", name.encode())
    (tmp_path / "f0.png").mkdir()
    for folder in (str(tmp_path), memory_url):
        assert is_folder(folder, what="control_video")
        found = list(read_folder(folder, what="control_video"))
        assert [name for name, _ in found] == ["f1.png", "f9.png", "f10.png", "f100.PNG"]
        assert [data for _, data in found] == [b"f1.png", b"f9.png", b"f10.png", b"f100.PNG"]


@pytest.mark.parametrize(
    ("names", "reason"),
    [([], "holds no images"), (["a.txt"], "holds no images"), (["0.png", "0.jpg"], r"several kinds \(\.jpg, \.png\)")],
)
def test_a_folder_without_images_or_with_two_kinds_is_refused(tmp_path, names, reason):
    for name in names:
        (tmp_path / name).write_bytes(DATA)
    with pytest.raises(RequestError, match=reason):
        list(read_folder(str(tmp_path), what="control_video"))


def test_files_bytes_and_data_urls_are_no_folders_and_nothing_is_not_either(tmp_path, memory_url):
    for source in every_kind(tmp_path, memory_url):
        assert not is_folder(source, what="image")
    with pytest.raises(RequestError, match="does not exist"):
        is_folder(str(tmp_path / "none"), what="image")


def test_what_data_look_like_is_told_by_how_they_begin():
    assert likeness(b"\x89PNG\r\n\x1a\n") == "a PNG image"
    assert likeness(b"\0\0\0\x20ftypisom") == "an MP4 or similar file"
    assert likeness(b"\n<!DOCTYPE html>") == "a web page"
    assert likeness(b"hello") == "something else"
    assert looks_like_image(b"RIFF\0\0\0\0WEBP")
    assert not looks_like_image(b"RIFF\0\0\0\0AVI ")
