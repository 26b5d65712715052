"""Harvesting texts: a tiny BERT and a tiny GPT-2, made here, for whoever has transformers."""

import json
import os
import random
import signal
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fewfire import cli, demo, runs
from fewfire.harvesting import Listener, find_model, harvest, load_model
from nursery import children, needs_fork, start

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = [
    "few",
    "features",
    "fire",
    "##s",
    "##ing",
    "the",
    "a",
    "cat",
    "sat",
    "on",
    "mat",
    "un",
    "##believ",
    ",",
    ".",
    "!",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [
    "few features fire",
    "",
    "The cat sat on the mat, the cat sat on a mat, unbelieving!",
    "zebra",
    "few features",
    "cats, cats, cats. the cats sat on the mats. few fires fire. a cat fires!",
]


def bert(folder):
    vocabulary = {token: i for i, token in enumerate(SPECIAL + WORDS)}
    words = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    words.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    words.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    words.decoder = tokenizers.decoders.WordPiece()
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=16, **names)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=16,
    )  # fmt: skip
    return saved(transformers.BertModel, config, tokenizer, folder)


def gpt(folder):
    """Without a padding token, without special tokens, a space at the beginning of words."""
    vocabulary = {token: i for i, token in enumerate(["?", "few", " features", " fire", " the", " cat", "the"])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "merged_with_next")
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?")
    config = transformers.GPT2Config(vocab_size=len(vocabulary), n_embd=8, n_layer=2, n_head=2, n_positions=12)
    return saved(transformers.GPT2Model, config, tokenizer, folder)


def saved(kind, config, tokenizer, folder):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return bert(tmp_path_factory.mktemp("models") / "tiny-bert")


@pytest.fixture(scope="module")
def model(folder):
    return load_model(folder)


@pytest.fixture(scope="module")
def gpt_model(tmp_path_factory):
    return load_model(gpt(tmp_path_factory.mktemp("models") / "tiny-gpt"))


LAYERS = ["encoder.layer.0", "encoder.layer.2"]


def alone(model, text, **options):
    """(windows, hidden states by layer of each) of one text by itself, as transformers give them."""
    ids = model.tokenizer(text, truncation=True, max_length=model.max_tokens, return_overflowing_tokens=True)[
        "input_ids"
    ]
    found = []
    for window in ids:
        with torch.inference_mode():
            found.append(model.model(input_ids=torch.tensor([window]), output_hidden_states=True).hidden_states)
    return ids, found


# ---------------------------------------------------------------------------------------------- agreement


def test_hooks_hear_exactly_the_hidden_states(model):
    layers = ["embeddings", *(f"encoder.layer.{i}" for i in range(3))]
    inputs = model.tokenizer([TEXTS[0], TEXTS[3]], return_tensors="pt", padding=True)
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    heard = {}
    with Listener(model.model, layers).listening() as run:
        run(inputs, lambda layer, hidden: heard.__setitem__(layer, hidden.clone()))
    with torch.inference_mode():
        expected = model.model.eval()(**inputs, output_hidden_states=True).hidden_states
    for name, hidden in zip(layers, expected, strict=True):
        assert torch.equal(heard[name], hidden)


@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
@pytest.mark.parametrize("special", [False, True])
def test_the_store_holds_the_hidden_states_in_the_order_of_the_text(model, tmp_path, batch_tokens, special):
    options = {"special_tokens": special, "batch_tokens": batch_tokens, "dtype": "float32", "progress": False}
    stores = harvest(model, TEXTS, LAYERS, tmp_path / "store", **options)
    store = stores[LAYERS[0]]
    expected = {name: [] for name in LAYERS}
    documents, ids, positions = [], [], []
    for document, text in enumerate(TEXTS):
        windows, hidden = alone(model, text)
        for k, window in enumerate(windows):
            kept = [i for i, token in enumerate(window) if special or token not in (2, 3)]
            documents += [document] * len(kept)
            ids += [window[i] for i in kept]
            positions += [k * model.max_tokens + i for i in kept]
            for name, states in zip(LAYERS, (hidden[k][1], hidden[k][3]), strict=True):
                expected[name].append(states[0, kept])
    rows = store.rows(range(store.n_rows)).to_pydict()
    assert (rows["document"], rows["token_id"], rows["position"]) == (documents, ids, positions)
    assert 0 not in rows["token_id"], "padding"
    assert 1 not in documents or special, "the empty text has no token of its own"
    for name in LAYERS:
        torch.testing.assert_close(stores[name].vectors(range(len(ids))), torch.cat(expected[name]), rtol=0, atol=2e-6)


def test_tokens_and_the_characters_that_they_are_made_of(model, tmp_path):
    (store,) = harvest(
        model, TEXTS, "encoder.layer.0", tmp_path / "store", special_tokens=True, progress=False
    ).values()
    texts = store.documents(range(store.n_documents))["text"].to_pylist()
    assert texts == TEXTS
    seen = {}
    for row in store.rows(range(store.n_rows)).to_pylist():
        if row["token_id"] in (2, 3):
            assert (row["start"], row["end"]) == (None, None)
            assert row["token"] in ("[CLS]", "[SEP]")
            continue
        spelled = texts[row["document"]][row["start"] : row["end"]].lower()
        assert row["token"].removeprefix("##") in (spelled, "[UNK]")
        assert row["start"] >= seen.get(row["document"], 0)
        seen[row["document"]] = row["end"]
    assert {document: len(texts[document]) for document in seen} == seen  # to the end, however long


@pytest.mark.parametrize("per", ["mean", "first", "last"])
@pytest.mark.parametrize("special", [False, True])
def test_one_row_a_document(model, tmp_path, per, special):
    options = {"per": per, "special_tokens": special, "dtype": "float32", "progress": False}
    (store,) = harvest(model, TEXTS, "encoder.layer.2", tmp_path / "store", **options).values()
    expected, documents = [], []
    for document, text in enumerate(TEXTS):
        windows, hidden = alone(model, text)
        kept = torch.cat(
            [
                hidden[k][3][0, [i for i, t in enumerate(window) if special or per == "first" or t not in (2, 3)]]
                for k, window in enumerate(windows)
            ]
        )
        if len(kept):
            expected.append({"mean": kept.mean(0), "first": kept[0], "last": kept[-1]}[per])
            documents.append(document)
    rows = store.rows(range(store.n_rows)).to_pydict()
    assert rows["document"] == documents
    torch.testing.assert_close(store.vectors(range(len(documents))), torch.stack(expected), rtol=0, atol=2e-6)
    if per == "mean":
        assert set(rows["token"]) == set(rows["position"]) == {None}
        assert (rows["start"], rows["end"]) == ([0] * len(documents), [len(TEXTS[i]) for i in documents])
    if per == "first":
        assert set(rows["token"]) == {"[CLS]"}
    assert store.per == per


def test_a_model_without_padding_or_special_tokens(gpt_model, tmp_path):
    texts = [
        "few features fire the cat",
        "the cat",
        "few",
        "",
        "few features fire the cat fire fire the cat cat cat cat cat",
    ]
    (store,) = harvest(gpt_model, texts, "h.1", tmp_path / "store", dtype="float32", progress=False).values()
    assert gpt_model.max_tokens == 12
    rows = store.rows(range(store.n_rows)).to_pydict()
    assert rows["token"][:5] == ["few", " features", " fire", " the", " cat"]
    assert rows["document"].count(4) == 13
    assert rows["position"][-13:] == list(range(13))
    heard = []
    gpt_model.model.h[1].register_forward_hook(lambda module, args, output: heard.append(output))
    at = 0
    for text in texts:
        for window in alone(gpt_model, text)[0] if text else []:
            hidden = heard.pop(0)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden
            torch.testing.assert_close(store.vectors(range(at, at + len(window))), hidden[0], rtol=0, atol=2e-6)
            at += len(window)
        heard = heard if text else []
    assert at == store.n_rows


def test_long_documents_are_cut_where_it_is_asked(model, tmp_path):
    (store,) = harvest(model, TEXTS[2:3], "encoder.layer.0", tmp_path / "a", max_tokens=5, progress=False).values()
    rows = store.rows(range(store.n_rows)).to_pydict()
    assert rows["position"][:4] == [1, 2, 3, 6]
    for wrong in (2, 17):
        with pytest.raises(ValueError, match=f"max_tokens from 3 to 16, which the model takes; got {wrong}"):
            harvest(model, TEXTS, "encoder.layer.0", tmp_path / "b", max_tokens=wrong, progress=False)


def test_the_pooler_has_no_row_for_each_token(model, tmp_path):
    with pytest.raises(
        ValueError, match=r"'pooler' puts out \(1, 8\) for 1 texts of 6 tokens; expected a row for each"
    ):
        harvest(model, TEXTS, "pooler", tmp_path / "store", progress=False)


# ---------------------------------------------------------------------------------------------- going on


MANY = [TEXTS[i % len(TEXTS)] + " cat" * (i % 7) for i in range(300)]


def content(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def harvest_many(tell, model, out):
    tell("begun")
    harvest(model, MANY, LAYERS, out, shard_bytes=4096, batch_tokens=64, resume=True, progress=False)
    return "done"


def failing(texts, at):
    yield from texts[:at]
    raise KeyboardInterrupt


def test_stopped_anywhere_and_gone_on(model, tmp_path):
    options = {"shard_bytes": 4096, "batch_tokens": 64, "progress": False}
    harvest(model, MANY, LAYERS, tmp_path / "whole", **options)
    for at in (0, 64, 130, 260, 300):
        out = tmp_path / f"at-{at}"
        with pytest.raises(KeyboardInterrupt):
            harvest(model, failing(MANY, at), LAYERS, out, **options)
        harvest(model, MANY, LAYERS, out, resume=True, **options)
        assert content(out) == content(tmp_path / "whole")


@needs_fork
@pytest.mark.slow  # a child takes seconds to import transformers
def test_killed_at_random_and_gone_on(folder, tmp_path, chains=20):
    with children(start(harvest_many, str(folder), str(tmp_path / "whole"))) as (child,):
        assert child.answer() == "begun"
        begun = time.monotonic()
        assert child.answer() == "done"
        life = time.monotonic() - begun
    whole = content(tmp_path / "whole")
    assert len(list((tmp_path / "whole" / LAYERS[0]).glob("shard-*"))) > 3
    clock, killed = random.Random(0), 0
    for chain in range(chains):
        out = tmp_path / f"store-{chain}"
        with children(start(harvest_many, str(folder), str(out))) as (child,):
            assert child.answer() == "begun"
            time.sleep(clock.uniform(life / 2, life))
            child.kill()
            child.join()
            killed += child.exitcode == -signal.SIGKILL
        with children(start(harvest_many, str(folder), str(out))) as (child,):
            assert (child.answer(), child.answer()) == ("begun", "done")
        assert content(out) == whole
    assert killed


def test_other_texts_are_refused(model, tmp_path):
    options = {"shard_bytes": 2048, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        harvest(model, failing(MANY, 200), LAYERS[:1], tmp_path / "store", **options)
    with pytest.raises(ValueError, match="not the documents"):
        harvest(model, ["other", *MANY[1:]], LAYERS[:1], tmp_path / "store", resume=True, **options)
    (store,) = harvest(model, MANY, LAYERS[:1], tmp_path / "store", resume=True, **options).values()
    assert store.n_documents == len(MANY)


# ---------------------------------------------------------------------------------------------- which model


def test_a_folder_a_package_or_neither(folder, tmp_path, monkeypatch):
    assert find_model(folder) == folder
    assert find_model(folder.parent) == folder
    package = tmp_path / "a_model_package"
    bert(package / "model")
    (package / "__init__.py").write_text("raise RuntimeError('nothing of a package is run')")
    (package / "model" / "1_Pooling").mkdir()
    (package / "model" / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    monkeypatch.syspath_prepend(str(tmp_path))
    assert find_model("a_model_package") == find_model("a-model-package") == package / "model"
    assert load_model("a-model-package").name == "a-model-package"
    bert(package / "another")
    with pytest.raises(ValueError, match="several models in it; name one of"):
        find_model("a_model_package")
    for nothing in ("no_such_package", "owner/name", "json", ""):
        with pytest.raises(FileNotFoundError):
            find_model(nothing)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no config\.json of a model"):
        find_model(tmp_path / "empty")


def test_a_model_that_cannot_be_had(folder, tmp_path):
    broken = bert(tmp_path / "broken")
    weights = broken / "model.safetensors"
    raw = weights.read_bytes()
    weights.write_bytes(raw[:100])
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_model(broken)
    weights.rename(broken / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="pickled ones .* never opened"):
        load_model(broken)
    (broken / "config.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        load_model(broken)


def test_loading_leaves_no_trace(folder):
    before = dict(os.environ)
    verbosity = transformers.utils.logging.get_verbosity()
    load_model(folder)
    assert dict(os.environ) == before
    assert transformers.utils.logging.get_verbosity() == verbosity


def test_weights_that_a_file_lacks(folder, tmp_path):
    """They are made up, by generators of our own, and a warning says so."""
    bare = bert(tmp_path / "bare")
    with torch.random.fork_rng():
        config = transformers.BertConfig.from_pretrained(folder)
        transformers.BertModel(config, add_pooling_layer=False).save_pretrained(bare)
    with pytest.warns(UserWarning, match=r"2 weights are not in its files and were made up, such as pooler\."):
        first = load_model(bare)
    with pytest.warns(UserWarning):
        second = load_model(bare)
    assert torch.equal(first.model.pooler.dense.weight, second.model.pooler.dense.weight)


# ---------------------------------------------------------------------------------------------- on the command line


@pytest.fixture
def call(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.warnings, "showwarning", cli.warnings.showwarning)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["fewfire", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit:
            cli.main()
        out, err = capsys.readouterr()
        return exit.value.code or 0, out, err

    return run


def test_from_texts_to_a_dictionary(call, folder, tmp_path):
    (tmp_path / "posts.jsonl").write_text("\n".join(json.dumps({"text": t, "tag": i % 2}) for i, t in enumerate(MANY)))
    code, _, err = call("harvest", folder, "posts.jsonl", "--layer", LAYERS[1], "--out", "store", "--label", "tag")
    assert code == 0, err
    assert "fewfire train store --out run" in err
    assert call("train", "store", "--out", "run", "--set", "train.steps=20")[0] == 0
    code, out, err = call("evaluate", "run", "--probe", "labels")
    assert code == 0 and "probe_accuracy" in out, err
    assert call("report", "run")[0] == 0
    assert call("encode", "run", "store", "--out", "codes.npz")[0] == 0
    assert runs.open_run("run").provenance["origin"]["layer"] == LAYERS[1]
    code, _, err = call("harvest", folder, "posts.jsonl", *[a for n in LAYERS for a in ("--layer", n)], "--out", "both")
    assert code == 0, err
    code, _, err = call("train", "both", "--out", "run2")
    assert code == 2
    assert "name one, both/encoder.layer.0" in err


def test_the_text_demo(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "find_model", lambda _: folder)
    monkeypatch.setattr(demo, "TEXT_LAYER", LAYERS[0])
    monkeypatch.setitem(demo.DEMOS, "text", {"model": {"n_latents": 16}, "train": {"steps": 20}})
    (tmp_path / "mine.txt").write_text("\n".join(MANY))
    page = demo.run_demo("text", texts="mine.txt", progress=False)
    assert page.is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fewfire-demo-text", "fewfire-demo-text-store", "mine.txt"]
    assert runs.open_run("fewfire-demo-text").source().store.n_documents == len(MANY)


def test_the_layers_are_listed(call, folder):
    code, out, _ = call("harvest", folder, "--layer", "list")
    assert code == 0
    assert "encoder.layer.2.attention.output.dense       Linear" in out.splitlines()


@pytest.mark.parametrize(
    "arguments, says",
    [
        ("texts.txt --out s", "--layer list shows"),
        ("--layer encoder.layer.0 --out s", "expected MODEL TEXTS"),
        ("texts.txt --layer encoder.layer.0", "expected MODEL TEXTS"),
        ("texts.txt --layer layer.0 --out s", "near it: encoder.layer.0"),
        ("nothing.txt --layer encoder.layer.0 --out s", "no such file: nothing.txt"),
        ("texts.txt --layer encoder.layer.0 --out s --column text", "no columns or labels"),
        ("texts.txt --layer encoder.layer.0 --out s --per words", "expected per to be one of"),
        ("texts.txt --layer encoder.layer.0 --out s --limit 0", "expected limit"),
        ("texts.pdf --layer encoder.layer.0 --out s", "cannot tell how to read texts"),
    ],
)
def test_what_is_refused(call, folder, tmp_path, arguments, says):
    (tmp_path / "texts.txt").write_text("few features fire\n")
    (tmp_path / "texts.pdf").write_text("%PDF")
    code, out, err = call("harvest", folder, *arguments.split())
    assert code == 2 and out == "", err
    assert says in err and err.count("\n") == 1 and len(err) < 400
    assert not (tmp_path / "s").exists()


def test_a_few_documents_of_each_kind_of_file(model, tmp_path):
    table = pa.table({"body": TEXTS, "tag": [1, 2, None, 4, 5, 6], "n": np.arange(6)})
    pq.write_table(table, tmp_path / "t.parquet")
    (store,) = harvest(
        model, tmp_path / "t.parquet", LAYERS[0], tmp_path / "s", label="tag", limit=3, progress=False
    ).values()
    assert store.documents(range(store.n_documents)).to_pydict() == {
        "document": [0, 1, 2], "text": TEXTS[:3], "label": ["1", "2", None],
    }  # fmt: skip
