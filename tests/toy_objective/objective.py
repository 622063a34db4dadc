"""The logistic loss of DPO (arXiv:2305.18290), equation 7."""

import jax

from jaxvlm.objectives.objective import Objective
from jaxvlm.objectives.segments import pair_weights, segment_log_probs, split_pairs

BETA = 0.5


def loss(model, batch, reference):
    before_chosen_BP, before_rejected_BP = split_pairs(segment_log_probs(reference, batch))
    chosen_BP, rejected_BP = split_pairs(segment_log_probs(model, batch))
    margins_BP = BETA * ((chosen_BP - before_chosen_BP) - (rejected_BP - before_rejected_BP))
    weights_BP = pair_weights(batch)

    def total(values_BP):
        return (values_BP * weights_BP).sum(), weights_BP.sum()

    losses_BP = -jax.nn.log_sigmoid(margins_BP)
    return {"loss": total(losses_BP), "preferred": total(margins_BP > 0), "margin": total(margins_BP)}


def weight(batch):
    return pair_weights(batch).sum()


OBJECTIVE = Objective(loss, weight, names=("loss", "preferred", "margin"), pairs=True, needs_reference=True)
