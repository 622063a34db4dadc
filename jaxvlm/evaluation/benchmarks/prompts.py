"""What several benchmarks write: sentences at the end of questions, and sources of published numbers."""

from jaxvlm.evaluation.benchmarks.benchmark import Item

SHORT = "Answer the question using a single word or phrase."
MODEL_ZOO = "LLaVA's MODEL_ZOO.md"


def with_images(item: Item, text: str) -> str:
    """A placeholder for each image, each on a line before the text."""
    return "<image>\n" * len(item.images) + text
