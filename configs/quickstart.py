"""A small LLaVA from scratch on easy-VQA."""

from ml_collections import ConfigDict

from configs import base


def get_config() -> ConfigDict:
    """The recipe."""
    c = base.get_config()
    c.model.vision.update(image_size=64, patch_size=8, embed_dim=96, mlp_dim=384, num_layers=4, num_heads=4)
    c.model.vision.feature_layer = -1
    c.model.language.update(vocab_size=512, embed_dim=96, mlp_dim=256, num_layers=3, num_heads=4)
    c.model.language.update(num_kv_heads=2, head_dim=24, tie_embeddings=True)
    c.model.compute_dtype = "float32"
    c.model.remat = "none"
    c.tokenizer.vocab_size = 512
    c.stages = ("align", "finetune")
    for name in c.stages:
        s = c.stage[name] = base.stage()
        s.data.source = "easy_vqa:train"
        s.data.heldout = 0.05
        s.data.system = ""
        s.data.tokens = 192
        s.data.images = 1
        s.data.augment.update(flip=True, shift=4, shuffle_turns=True)
        s.optimizer.update(learning_rate=1e-3, b2=0.95)
        s.global_batch_size = 32
        s.epochs = 5.0
        s.eval_every = 100
        s.eval_records = 200
    c.stage.finetune.parts.vision = "frozen"
    c.stage.finetune.frozen_dtype = "float32"
    c.evaluation.source = "easy_vqa:test"
    c.evaluation.batch_size = 256
    c.evaluation.max_new_tokens = 4
    return c
