"""`bench.py ablations`: every case is compared with its own on the same recordings."""

import json

import numpy as np
import pytest
import soundfile
from small_model import RATE, TOKENIZER, make_config, random_model, sound

from benchmarks import ablations
from benchmarks.ablations import WHOLE, Case
from conformer.training.checkpoint import save_weights

CASES = {
    WHOLE: Case(searched=True),
    "channels_first": Case(execution="channels_first"),
    "a chunk": Case(160),
    "no left context": Case(160, 0, against="a chunk"),
    "fp8_e5m2": Case(numerics="fp8_e5m2", searched=True),
}


@pytest.mark.slow  # processes of its own
def test_cases_are_compared_on_the_recordings_of_all_splits(tmp_path, monkeypatch):
    rng, rows = np.random.default_rng(0), []
    for index, split in enumerate(["train", "dev", "dev", "test", "test", "test"]):
        soundfile.write(tmp_path / f"{index}.wav", sound(6_000 + 400 * index, seed=index), RATE)
        text = " ".join(rng.choice(["a", "bad", "cab"], 3))
        rows.append({"id": str(index), "audio": f"{index}.wav", "text": text, "split": split})
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config(causal_conv=True).replace({"data.source": str(tmp_path / "manifest.jsonl")})
    (tmp_path / "config.json").write_text(config.to_json())
    (tmp_path / "search.json").write_text('{"beam_size": 4}')
    TOKENIZER.save(tmp_path)
    save_weights(tmp_path, random_model(config, seed=1, vectors=0.3), 7)

    heard, hear = {}, ablations.hear
    names = {case: name for name, case in CASES.items()}
    monkeypatch.setattr(ablations, "hear", lambda *args: heard.setdefault(names[args[1]], hear(*args)))
    result = ablations.run(tmp_path, "dev,test", CASES)
    rows = {row["case"]: row for row in result["rows"]}
    assert [row["against"] for row in rows.values()] == [None, WHOLE, WHOLE, "a chunk", WHOLE]
    assert all(row["greedy"]["utterances"] == 5 and row["greedy"]["words"] == 15 for row in rows.values())
    assert [name for name, row in rows.items() if "searched" in row] == [WHOLE, "fp8_e5m2"]
    assert rows[WHOLE]["searched"]["errors"] != rows[WHOLE]["greedy"]["errors"]
    for row in list(rows.values())[1:]:
        for way in row.keys() & set(ablations.WAYS):
            figures, other = row[way], rows[row["against"]][way]
            assert figures["wer_difference"] == pytest.approx(figures["wer"] - other["wer"])
            assert figures["low"] <= figures["wer_difference"] <= figures["high"]
    furthest = {
        name: max(np.abs(a - b).max() for (_, a), (_, b) in zip(heard[name], heard[row["against"]], strict=True))
        for name, row in rows.items()
        if row["against"]
    }
    assert furthest["channels_first"] < 1e-4 and all(furthest[name] > 0.01 for name in list(CASES)[2:])
    assert len(ablations.table(result).splitlines()) == 2 + len(CASES)
