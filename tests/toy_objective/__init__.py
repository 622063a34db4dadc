"""An objective of another shape than sft, to prove the contract: pairs, a reference, and metrics of its own. No file
outside this folder knows it.
"""

import jax
import jax.numpy as jnp

from jaxvlm.objectives.objective import Objective
from jaxvlm.objectives.segments import pair_weights, segment_log_probs, split_pairs


def loss(model, batch, reference=None):
    """Logistic loss of how much more the chosen answer gained on the reference than the rejected one."""
    before_BS = segment_log_probs(reference, batch)
    chosen_BP, rejected_BP = split_pairs(segment_log_probs(model, batch) - before_BS)
    weights_BP = pair_weights(batch)
    margin_BP = chosen_BP - rejected_BP

    def entry(values_BP):
        return (values_BP * weights_BP).sum(), weights_BP.sum()

    return {
        "loss": entry(-jax.nn.log_sigmoid(margin_BP)),
        "margin": entry(margin_BP),
        "preferred": entry((margin_BP > 0).astype(jnp.float32)),
    }


OBJECTIVE = Objective(
    loss,
    weight=lambda batch: pair_weights(batch).sum(),
    names=("loss", "margin", "preferred"),
    pairs=True,
    needs_reference=True,
)
