import json
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from wan_ray.errors import CheckpointError
from wan_ray.model.weights import TensorFiles, load_, shapes_of

CPU = torch.device("cpu")

# Loads a file into a bfloat16 model; prints how much memory of its own the process had at most meanwhile, and after.
MEASURED_LOAD = """
import re, sys, threading, time
from pathlib import Path
import torch
from torch import nn
from wan_ray.model.weights import TensorFiles, load_

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

with torch.device("meta"):
    model = nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(16)))
before = most = anonymous()
ended = threading.Event()
def watch():
    global most
    while not ended.wait(0.001):
        most = max(most, anonymous())
thread = threading.Thread(target=watch)
thread.start()
tensors = TensorFiles.open([Path(sys.argv[1])])
load_(model, tensors, device=torch.device("cpu"), dtype_of=lambda _: torch.bfloat16, what="model")
del tensors
ended.set()
thread.join()
print(most - before, anonymous() - before, {p.dtype for p in model.parameters()} == {torch.bfloat16})
"""


def tensors_of(**changed):
    tensors = {"0.weight": torch.arange(6.0).reshape(2, 3), "0.bias": torch.ones(2), "1.weight": torch.zeros(4, 2)}
    return {name: tensor for name, tensor in {**tensors, **changed}.items() if tensor is not None}


def save(tensors, file):
    (save_file if file.suffix == ".safetensors" else torch.save)(tensors, file)
    return file


def model():
    with torch.device("meta"):
        return nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4, bias=False))


def load(files, dtype=torch.float32):
    loaded = model()
    load_(loaded, TensorFiles.open(files), device=CPU, dtype_of=lambda _: dtype, what="toy")
    return loaded


def refusal(files):
    with pytest.raises(CheckpointError) as caught:
        load(files)
    return str(caught.value)


@pytest.fixture(params=["w.safetensors", "w.pth"])
def file(request, tmp_path):
    return tmp_path / request.param


def test_a_model_is_filled_with_the_file_s_values_in_the_wanted_dtype_and_frozen(file):
    loaded = load([save(tensors_of(), file)], torch.bfloat16)
    for name, parameter in loaded.named_parameters():
        assert parameter.dtype == torch.bfloat16 and not parameter.requires_grad
        assert torch.equal(parameter.float(), tensors_of()[name])


def test_files_of_mixed_dtypes_load(tmp_path):
    small = {"0.bias": torch.ones(2, dtype=torch.bfloat16), "1.weight": torch.full((4, 2), 0.5).to(torch.float8_e4m3fn)}
    loaded = load([save(tensors_of(**small), tmp_path / "w.safetensors")])
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.get_parameter("1.weight"), torch.full((4, 2), 0.5))


def test_a_parameter_shared_by_two_modules_stays_shared():
    with torch.device("meta"):
        shared = nn.ModuleList([nn.Embedding(3, 2), nn.Linear(2, 3, bias=False)])
    shared[1].weight = shared[0].weight
    source = TensorFiles({"0.weight": (3, 2)}, lambda _: torch.ones(3, 2), "fingerprint")
    load_(shared, source, device=CPU, dtype_of=lambda _: torch.float32, what="toy")
    assert shared[0].weight is shared[1].weight
    assert shapes_of(shared) == {"0.weight": (3, 2)}


def test_missing_extra_and_misshaped_tensors_are_named(file):
    changed = tensors_of(**{"0.bias": None, "0.gain": torch.ones(2), "1.weight": torch.zeros(2, 4)})
    assert refusal([save(changed, file)]) == (
        "the toy does not fit its weights: missing 0.bias; extra 0.gain; misshaped 1.weight [2, 4] instead of [4, 2]"
    )


def test_of_many_wrong_tensors_five_are_named_and_the_others_counted(file):
    extra = {f"x.{i}": torch.ones(1) for i in range(9)}
    assert refusal([save(tensors_of(**extra), file)]).endswith("extra x.0, x.1, x.2, x.3, x.4 and 4 more")


def test_a_file_cut_short_is_named(file):
    data = save({"a": torch.zeros(10_000)}, file).read_bytes()
    for kept in (0, 4, 100, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:kept])
        assert str(file) in refusal([file]), kept


def test_a_missing_file_is_named(file):
    assert refusal([file]) == f"weight file {str(file)!r} is missing"


class Payload:
    """Writes a file when it is unpickled by anything that runs what a pickle says."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return (Path.write_text, (Path(self.mark), "ran"))


def test_code_in_an_archive_is_refused_and_never_runs(tmp_path):
    mark, file = tmp_path / "mark", tmp_path / "w.pth"
    torch.save({**tensors_of(), "code": Payload(mark)}, file)
    message = refusal([file])
    assert "holds code or objects, and only tensors are read" in message
    assert "weights_only" not in message
    with file.open("wb") as stream:
        pickle.dump(Payload(mark), stream)
    assert "no PyTorch archive" in refusal([file])
    assert not mark.exists()
    torch.load(save({"code": Payload(mark)}, file), weights_only=False)
    assert mark.read_text() == "ran"  # so the payload would have worked


@pytest.mark.parametrize("content", [[torch.ones(1)], {"model": {"a": torch.ones(1)}}, torch.ones(1), {"step": 3}])
def test_an_archive_of_something_else_than_a_table_of_tensors_is_refused(tmp_path, content):
    assert "not a plain table of tensors" in refusal([save(content, tmp_path / "w.pth")])


def test_shards_are_read_as_one_and_a_tensor_in_two_of_them_is_named(tmp_path):
    first = save(tensors_of(**{"1.weight": None}), tmp_path / "1.safetensors")
    second = save({"1.weight": torch.ones(4, 2)}, tmp_path / "2.safetensors")
    assert torch.equal(load([first, second]).get_parameter("1.weight"), torch.ones(4, 2))
    save(tensors_of(), second)
    assert "tensor '0.bias' is in" in refusal([first, second])


def test_the_fingerprint_stays_with_the_weights_wherever_they_lie(file, tmp_path):
    fingerprint = TensorFiles.open([save(tensors_of(), file)]).fingerprint
    assert len(fingerprint) == 32
    (tmp_path / "elsewhere").mkdir()
    again = save(tensors_of(), tmp_path / "elsewhere" / f"other{file.suffix}")
    copied = Path(shutil.copy(file, tmp_path / f"copy{file.suffix}"))
    assert TensorFiles.open([again]).fingerprint == TensorFiles.open([copied]).fingerprint == fingerprint


def test_the_fingerprint_changes_with_any_tensor_s_value_name_or_dtype(file):
    large = torch.zeros(300, 400)
    first, last = large.clone(), large.clone()
    first[0, 0], last[-1, -1] = 1, 1
    changes = [
        {},
        {"0.bias": torch.zeros(2)},
        {"0.bias": torch.ones(2).double()},
        {"0.bias": None, "0.gain": torch.ones(2)},
        {"large": large},
        {"large": first},
        {"large": last},
    ]
    found = [TensorFiles.open([save(tensors_of(**change), file)]).fingerprint for change in changes]
    assert len(set(found)) == len(changes)


def test_the_fingerprint_covers_every_shard(tmp_path):
    files = [tmp_path / "1.safetensors", tmp_path / "2.safetensors"]
    found = set()
    for a, b in ((0, 0), (1, 0), (0, 1)):
        save({"a": torch.full((2,), float(a))}, files[0])
        save({"b": torch.full((2,), float(b))}, files[1])
        found.add(TensorFiles.open(files).fingerprint)
    assert len(found) == 3


def test_dtypes_are_those_of_the_file_and_follow_renamed_tensors(tmp_path):
    small = {"a": torch.ones(2, dtype=torch.bfloat16), "b": torch.ones(2).to(torch.float8_e4m3fn), "c": torch.ones(2)}
    for suffix in (".safetensors", ".pth"):
        tensors = TensorFiles.open([save(small, tmp_path / f"w{suffix}")])
        assert tensors.dtypes == {"a": "bfloat16", "b": "float8_e4m3fn", "c": "float32"}
        renamed = tensors.renamed(str.upper).without(lambda name: name == "C")
        assert {name: renamed.dtypes[name] for name in renamed.shapes} == {"A": "bfloat16", "B": "float8_e4m3fn"}


def test_a_file_larger_than_the_memory_tells_its_shapes(tmp_path):
    num_bytes = 1 << 40
    header = json.dumps({"a": {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}}).encode()
    with (tmp_path / "w.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + num_bytes)  # a hole: takes no room
    assert TensorFiles.open([tmp_path / "w.safetensors"]).shapes == {"a": (num_bytes,)}


def test_a_git_lfs_pointer_of_either_kind_is_told(file):
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    assert refusal([file]) == f"weight file {str(file)!r} is a Git LFS pointer to one; run 'git lfs pull'"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_loading_float32_as_bfloat16_never_holds_a_second_copy(tmp_path, suffix):
    # 16 tensors of 16 MiB in the file, half of that in the model: 128 MiB.
    file = save({f"{i}.weight": torch.zeros(2048, 2048) for i in range(16)}, tmp_path / f"w{suffix}")
    said = subprocess.run(
        [sys.executable, "-c", MEASURED_LOAD, str(file)], capture_output=True, text=True, check=True
    ).stdout.split()
    file.unlink()  # pytest keeps the folders of its last runs
    most, after = float(said[0]), float(said[1])
    assert said[2] == "True"
    assert 120 < after < 128 + 16
    assert most < 128 + 2 * 16
