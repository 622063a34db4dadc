"""The metrics of a run, for tests that train one."""

import json


def losses(folder):
    """Step -> loss and gradient norm, as written, of a run of one stage."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: (line["loss"], line["gradient_norm"]) for line in lines if "gradient_norm" in line}
