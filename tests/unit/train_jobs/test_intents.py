"""The sentences are the same for a seed, whole templates are held out, and users' files are read or refused."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from train_jobs.intents import Example, labels, read_file, sample, split

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def drawn() -> list[Example]:
    return sample(per_intent=40, seed=3)


def test_sentences_hold_no_trace_of_the_template_language(drawn: list[Example]) -> None:
    assert not [example for example in drawn if set(example.text) & set("{}[]()<>|;")]


def test_no_sentence_is_drawn_twice_for_an_intent_and_none_exceeds_the_number_asked_for(drawn: list[Example]) -> None:
    assert len({(example.label, example.text) for example in drawn}) == len(drawn)
    counts = Counter(example.label for example in drawn)
    assert len(counts) > 35
    assert max(counts.values()) == 40


def test_the_same_seed_gives_the_same_sentences_in_another_process_with_other_hashes() -> None:
    program = (
        "from train_jobs.intents import sample, split\n"
        "import hashlib\n"
        "print(hashlib.sha256(repr(split(sample(per_intent=5, seed=1), seed=2)).encode()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": hashes, "PYTHONPATH": str(ROOT)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hashes in ("1", "2")
    }
    assert len(digests) == 1


def test_another_seed_gives_other_sentences(drawn: list[Example]) -> None:
    assert sample(per_intent=40, seed=4) != drawn


def test_no_template_and_no_text_of_the_test_set_appears_in_training(drawn: list[Example]) -> None:
    train, test = split(drawn, seed=0)
    assert not {(e.label, e.template) for e in train} & {(e.label, e.template) for e in test}
    assert not {e.text for e in train} & {e.text for e in test}


def test_every_intent_stays_in_training_and_those_with_two_templates_are_tested(drawn: list[Example]) -> None:
    train, test = split(drawn, seed=0)
    templates = Counter(label for label, _ in {(e.label, e.template) for e in drawn})
    assert labels(train) == labels(drawn)
    tested = {e.label for e in test}
    untested = {label for label, count in templates.items() if count > 1} - tested
    assert len(untested) <= 2  # one whose held-out template says only what a training template says too


def test_a_hundred_and_twenty_sentences_per_intent_take_seconds() -> None:
    began = time.monotonic()
    assert len(sample(per_intent=120, seed=0)) > 3000
    assert time.monotonic() - began < 15


def test_csv_and_json_lines_of_a_user_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('text,label\n"lights, please",on\nstop,off\n')
    (tmp_path / "a.jsonl").write_text('{"text": "lights, please", "label": "on"}\n\n{"text": "stop", "label": "off"}\n')
    wanted = [Example("lights, please", "on", "lights, please"), Example("stop", "off", "stop")]
    assert read_file(tmp_path / "a.csv") == read_file(tmp_path / "a.jsonl") == wanted


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "sentence,label\nhi,x\n", r"a\.csv, line 1: no column text"),
        ("a.csv", "text,label\nhi,x\nho,\n", r"a\.csv, line 3: label is ''"),
        ("a.jsonl", '{"text": "hi", "label": "x"}\nnot json\n', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", '["hi", "x"]\n', r"a\.jsonl, line 1: not an object"),
        ("a.jsonl", '{"text": 3, "label": "x"}\n', r"a\.jsonl, line 1: text is 3"),
        ("a.csv", "text,label\n", r"a\.csv: holds no sentences"),
        ("a.xlsx", "", r"a\.xlsx: cannot read \.xlsx"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_its_line(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_file(tmp_path / name)
