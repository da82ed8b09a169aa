"""What an assistant is asked to do: sentences with the intent behind each, for training and for judging.

Drawn from the templates of Home Assistant's voice intents (PyPI home-assistant-intents, Apache-2.0), which hassil
parses, or read from a user's own file. The names of rooms and devices, which every home has its own, are made up here.

Every draw depends on the seed alone, never on the order of a set or dictionary of strings.
Not here: how to train on them (recipe.py).
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

LANGUAGE = "en"

_TRIES_PER_SENTENCE = 12
"""Draws per sentence asked for before an intent counts as exhausted: a few can say only some thirty things."""

_ROOMS = (
    "kitchen", "living room", "bedroom", "bathroom", "garage", "office", "hallway", "attic",
    "dining room", "guest room", "nursery", "laundry room", "patio", "garden", "study", "basement",
)  # fmt: skip
_FLOORS = ("first", "second", "ground", "top", "upper", "lower")
_ANY_DEVICE = (
    "desk lamp", "reading light", "coffee machine", "ceiling fan", "bedside lamp", "heater", "tv",
    "christmas tree", "humidifier", "radio", "porch light", "air purifier", "kettle", "aquarium",
)  # fmt: skip
_DEVICES: Mapping[str, Sequence[str]] = {
    "light": ("desk lamp", "reading light", "porch light", "bedside lamp", "chandelier", "night light", "spotlights"),
    "cover": ("left curtain", "garage door", "roller blind", "front gate", "shutters", "awning", "bay window shades"),
    "valve": ("water valve", "sprinkler valve", "gas valve", "garden tap"),
    "lock": ("front door", "back door", "cellar door", "side gate"),
    "fan": ("ceiling fan", "tower fan", "extractor", "desk fan"),
    "media_player": ("tv", "soundbar", "radio", "kitchen speaker", "record player", "projector"),
    "climate": ("thermostat", "heat pump", "air conditioner", "radiator"),
    "vacuum": ("roomba", "robot vacuum", "dusty", "hoover"),
    "lawn_mower": ("lawn mower", "mowbot", "robot mower"),
    "scene": ("movie night", "dinner party", "good morning", "romantic evening"),
    "script": ("bedtime routine", "party mode", "leaving home", "wake up routine"),
    "button": ("doorbell", "reset button", "restart button"),
    "person": ("alice", "bob", "grandma", "charlie", "dana"),
    "todo": ("chores", "groceries", "homework", "weekend projects", "packing"),
    "weather": ("london", "seattle", "weather station", "home forecast"),
    "binary_sensor": ("smoke alarm", "phone", "front window", "motion sensor", "washing machine"),
}
"""Names by the kind of device that a template asks for: nobody unlocks a desk lamp."""

_FREE_TEXT: Mapping[str, Sequence[str]] = {
    "message": ("dinner is ready", "time to leave", "the bus is here", "come downstairs please", "good night"),
    "search_query": ("the beatles", "bohemian rhapsody", "jazz classics", "star wars", "taylor swift", "abbey road"),
    "zone": ("work", "school", "the gym", "the supermarket", "the airport"),
    "timer_name": ("pizza", "laundry", "tea", "egg", "pasta", "workout", "nap"),
    "timer_command": ("turn off the lights", "open the blinds", "play some music", "lock the front door"),
    "shopping_list_item": ("milk", "eggs", "bread", "apples", "olive oil", "toilet paper", "coffee"),
    "todo_list_item": ("call mom", "water the plants", "pay the rent", "walk the dog", "fix the sink"),
}


@dataclass(frozen=True)
class Example:
    """One sentence, the intent it expresses, and the template it was drawn from (its own text where there is none)."""

    text: str
    label: str
    template: str


def sample(*, per_intent: int, seed: int) -> list[Example]:
    """Up to per_intent different sentences for each intent, its templates taking turns; ordered by intent.

    An intent whose templates cannot say so much gives what it has. The same arguments give the same list.
    """
    if per_intent < 1:
        raise ValueError(f"per_intent is {per_intent}; ask for at least 1 sentence per intent")
    grammar = _grammar()
    examples: list[Example] = []
    for name in sorted(grammar.intents):
        chance = Random(f"{seed}/{name}")  # one stream per intent: a new intent does not reshuffle the others
        examples += _sample_intent(name, grammar, per_intent, chance)
    return examples


def split(examples: Sequence[Example], *, seed: int, holdout: float = 0.2) -> tuple[list[Example], list[Example]]:
    """Hold out whole templates: (train, test), so that a test sentence is worded as no training sentence is.

    Of each label's templates the share `holdout` is held out, at least one where there are two. A test sentence that
    a training template also happens to produce is left out of both.
    """
    if not 0 < holdout < 1:
        raise ValueError(f"holdout is {holdout}; give the share of templates to hold out, between 0 and 1")
    held_out = _held_out(examples, seed, holdout)
    train = [example for example in examples if (example.label, example.template) not in held_out]
    seen = {example.text.casefold() for example in train}
    test = [
        example
        for example in examples
        if (example.label, example.template) in held_out and example.text.casefold() not in seen
    ]
    return train, test


def labels(examples: Iterable[Example]) -> tuple[str, ...]:
    """The labels present, sorted: the order of a classifier's outputs."""
    return tuple(sorted({example.label for example in examples}))


def read_file(path: Path) -> list[Example]:
    """Read a user's own sentences: CSV with a header, or JSON lines; both with `text` and `label`.

    A column `template` is used where there is one; without it each sentence counts as its own template, and `split`
    holds out sentences. ValueError names the file and line of what cannot be used.
    """
    readers = {".csv": _csv_rows, ".jsonl": _json_rows, ".ndjson": _json_rows}
    if path.suffix not in readers:
        raise ValueError(f"{path}: cannot read {path.suffix or 'a file without suffix'}; give .csv, .jsonl or .ndjson")
    examples = [_example(row, path, line) for line, row in readers[path.suffix](path)]
    if not examples:
        raise ValueError(f"{path}: holds no sentences; write one per line with the fields text and label")
    return examples


def _held_out(examples: Sequence[Example], seed: int, holdout: float) -> set[tuple[str, str]]:
    templates: dict[str, list[str]] = defaultdict(list)
    for example in sorted(set(examples), key=lambda e: (e.label, e.template)):
        if example.template not in templates[example.label][-1:]:
            templates[example.label].append(example.template)
    held: set[tuple[str, str]] = set()
    for label, known in templates.items():
        if len(known) > 1:
            count = max(1, round(holdout * len(known)))
            held |= {(label, template) for template in Random(f"{seed}/{label}").sample(known, count)}
    return held


# Sampling: hassil parses the templates; its own sampler enumerates (millions for one template), so the walk is ours.


@dataclass(frozen=True)
class _Template:
    text: str
    expression: Any  # a hassil Expression; hassil is followed as untyped
    rules: Mapping[str, Any]  # rule name -> hassil Sentence
    devices: Sequence[str]  # what {name} may be


@dataclass(frozen=True)
class _Grammar:
    intents: Mapping[str, Sequence[_Template]]
    lists: Mapping[str, Any]  # list name -> hassil SlotList


@cache
def _grammar() -> _Grammar:
    import home_assistant_intents
    from hassil.intents import Intents

    path = Path(home_assistant_intents.__file__).parent / "data" / f"{LANGUAGE}.json"
    parsed = Intents.from_dict(json.loads(path.read_text(encoding="utf-8")))
    intents = {
        name: [template for block in intent.data for template in _templates(block, parsed.expansion_rules)]
        for name, intent in parsed.intents.items()
    }
    return _Grammar(intents, parsed.slot_lists)


def _templates(block: Any, shared_rules: Mapping[str, Any]) -> Iterator[_Template]:
    rules = {**shared_rules, **block.expansion_rules}
    domains = block.requires_context.get("domain") or []
    kinds = [domains] if isinstance(domains, str) else domains
    devices = [name for kind in kinds for name in _DEVICES.get(kind, ())] or _ANY_DEVICE
    for text, sentence in zip(block.sentence_texts, block.sentences, strict=True):
        yield _Template(text, sentence.expression, rules, devices)


def _sample_intent(name: str, grammar: _Grammar, wanted: int, chance: Random) -> list[Example]:
    templates = list({template.text: template for template in grammar.intents[name]}.values())
    chance.shuffle(templates)
    found: dict[str, Example] = {}
    for draw in range(wanted * _TRIES_PER_SENTENCE):
        if len(found) == wanted:
            break
        template = templates[draw % len(templates)]
        text = " ".join(_Walk(template, grammar.lists, chance).say(template.expression).split())
        if text:
            found.setdefault(text.casefold(), Example(text, name, template.text))
    return list(found.values())


@dataclass(frozen=True)
class _Walk:
    """One random way through a template."""

    template: _Template
    lists: Mapping[str, Any]
    chance: Random

    def say(self, expression: Any) -> str:
        from hassil import expression as kinds

        match expression:
            case kinds.TextChunk():
                return str(expression.original_text)
            case kinds.Alternative():
                return self.say(self.chance.choice(expression.items))
            case kinds.Permutation():
                return " ".join(self.say(item) for item in self.chance.sample(expression.items, len(expression.items)))
            case kinds.Sequence():
                return "".join(self.say(item) for item in expression.items)
            case kinds.RuleReference():
                return self.say(self.template.rules[expression.rule_name].expression)
            case kinds.ListReference():
                return self._slot(expression)
        raise TypeError(f"template {self.template.text!r} holds a {type(expression).__name__}; this hassil is too new")

    def _slot(self, reference: Any) -> str:
        if reference.is_inline_range:
            start, stop, step = reference.get_inline_range()
            return str(self.chance.randrange(start, stop + 1, step))
        made_up = {"name": self.template.devices, "area": _ROOMS, "floor": _FLOORS, **_FREE_TEXT}
        if reference.list_name in made_up:
            return self.chance.choice(made_up[reference.list_name])
        slots = self.lists.get(reference.list_name)
        if slots is None:
            raise LookupError(
                f"template {self.template.text!r} needs values for {{{reference.list_name}}}; "
                "add some to _FREE_TEXT in train_jobs/intents.py"
            )
        if hasattr(slots, "values"):
            return self.say(self.chance.choice(slots.values).text_in)
        return f"{self.chance.choice(list(slots.get_numbers())):g}"


# Reading a user's file.


def _csv_rows(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets write a byte order mark
        rows = csv.DictReader(file)
        absent = {"text", "label"} - set(rows.fieldnames or ())
        if absent:
            raise ValueError(
                f"{path}, line 1: no column {', '.join(sorted(absent))} in {rows.fieldnames or []}; "
                "begin the file with a header such as: text,label"
            )
        for row in rows:
            yield rows.line_num, row


def _json_rows(path: Path) -> Iterator[tuple[int, Mapping[str, object]]]:
    for line, raw in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw)
        except json.JSONDecodeError as problem:
            raise ValueError(f"{path}, line {line}: not JSON ({problem}); write one object per line") from problem
        if not isinstance(row, dict):
            raise ValueError(f'{path}, line {line}: not an object; write {{"text": "...", "label": "..."}}')
        yield line, row


def _example(row: Mapping[str, object], path: Path, line: int) -> Example:
    text, label = (_field(row, key, path, line) for key in ("text", "label"))
    template = row.get("template")
    return Example(text, label, template if isinstance(template, str) and template else text)


def _field(row: Mapping[str, object], key: str, path: Path, line: int) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{path}, line {line}: {key} is {value!r}; write a text, or remove the line")
    return value.strip()
