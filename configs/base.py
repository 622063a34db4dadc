"""Every option of a recipe, once, with its default. A recipe starts from here and changes what it needs."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """A recipe without stages; the sizes of its model are CLIP ViT-L/14 at 336 pixels and LLaMA-2-7B."""
    c = ConfigDict()

    c.model = ConfigDict()
    c.model.family = "llava"  # jaxvlm/families/registry.py has the others, and what a family of your own takes
    c.model.vision = ConfigDict()
    c.model.vision.class_token = True  # these four are CLIP's; SigLIP has the opposite of each
    c.model.vision.pre_norm = True  # a norm before the first block
    c.model.vision.patch_bias = False  # a bias at the projection of patches
    c.model.vision.pool = False  # a pooling head, which is kept for exports and not computed with
    c.model.vision.activation = "quick_gelu"  # of the MLP; gelu: exact; gelu_tanh; silu
    c.model.vision.image_size = 336  # pixels along each side
    c.model.vision.patch_size = 14  # pixels along each side of a patch
    c.model.vision.embed_dim = 1024  # width of the features
    c.model.vision.mlp_dim = 4096  # width within an MLP
    c.model.vision.num_layers = 24  # blocks
    c.model.vision.num_heads = 16  # of attention
    c.model.vision.norm_epsilon = 1e-5  # added to the variance in a norm
    c.model.vision.feature_layer = -2  # whose output is used: -1 the last block, -2 the one before it
    c.model.vision.image_mean = (0.48145466, 0.4578275, 0.40821073)  # of CLIP (HF image_utils.py, OPENAI_CLIP_MEAN)
    c.model.vision.image_std = (0.26862954, 0.26130258, 0.27577711)
    c.model.projector = ConfigDict()
    c.model.projector.kind = "mlp2x_gelu"  # linear, mlp2x_gelu, mlp3x_gelu, ...
    c.model.language = ConfigDict()
    c.model.language.vocab_size = 32000  # tokens
    c.model.language.embed_dim = 4096  # width of a token's embedding
    c.model.language.mlp_dim = 11008  # width within an MLP
    c.model.language.num_layers = 32  # blocks
    c.model.language.num_heads = 32  # of attention
    c.model.language.num_kv_heads = 32  # fewer than num_heads: grouped-query attention
    c.model.language.head_dim = 128  # width of a head
    c.model.language.norm_epsilon = 1e-5  # added to the mean square in a norm
    c.model.language.rope_theta = 10000.0  # base of the rotary frequencies
    c.model.language.rope_scaling = None  # or ConfigDict(kind, factor, ...), the fields of config.RopeScaling
    c.model.language.tie_embeddings = False  # True: the output projection is the token embedding
    c.model.language.qkv_bias = False  # True for qwen2, and for llama and qwen3 with out_bias
    c.model.language.out_bias = False
    c.model.language.qk_norm = False  # True for qwen3 alone
    c.model.language.architecture = "llama"  # as which an export is written; mistral, qwen2, qwen3
    c.model.language.rope_axes = ()  # for three-axis positions: the axis that turns each of head_dim / 2 frequencies
    c.model.language.window = None  # Mistral's attention window; data.tokens must not be larger
    c.model.compute_dtype = "bfloat16"  # of activations and of the weights' copies that meet them
    c.model.remat = "full"  # what the backward pass recomputes; the names are in jaxvlm/tuning.py

    c.tokenizer = ConfigDict()
    c.tokenizer.source = (
        "train"  # "train": a BPE made from the recipe's own training text; else a folder, run, GGUF file or hub name
    )
    c.tokenizer.vocab_size = 1024  # of a trained one

    c.mesh = ConfigDict()  # devices along each axis; one may be -1, all that are left
    c.mesh.data = 1  # copies of the weights, between slices
    c.mesh.fsdp = -1  # weights split, rows split
    c.mesh.tensor = 1  # heads and mlp split

    # What the weights start from; "": random. A source is a folder of Hugging Face (LLaVA in either form, CLIP, SigLIP,
    # a decoder), a GGUF file, or a name on the hub, "owner/name" or "owner/name@revision".
    c.init = ConfigDict()
    c.init.model = ""  # all parts: the folder of an earlier run, or a source that has them
    c.init.vision = ""  # one part, in place of the model's
    c.init.projector = ""  # the same
    c.init.language = ""  # the same
    c.init.resize_vocab = False  # add rows where a decoder has fewer tokens than model.language.vocab_size
    c.stages = ()  # the names of the stages, in order
    c.stage = ConfigDict()  # name -> stage()

    c.evaluation = ConfigDict()  # after the last stage
    c.evaluation.source = ""  # as stage.data.source; "": no test
    c.evaluation.image_folder = ""  # as stage.data.image_folder
    c.evaluation.max_new_tokens = 64  # of an answer; a longer one is cut off
    c.evaluation.batch_size = 32  # questions answered at once
    c.evaluation.suites_folder = "data/benchmarks"  # of stage.suites: it has a folder for each benchmark

    c.generation = ConfigDict()  # the defaults of `generate`; evaluations take the most likely token
    c.generation.temperature = 0.0  # 0: the most likely token
    c.generation.top_p = 1.0  # sample from the most likely tokens of this total probability
    c.generation.top_k = 0  # sample from the K most likely tokens; 0: from all

    c.seed = 42  # of random weights, of the order of the data, and of augmentation
    c.date = ""  # "2026-11-27", for chat templates that write the date; "": the day on which the run starts
    c.steps = placeholder(int)  # at most this many steps in each stage, for a quick try
    c.profile = ()  # (first, last) steps of each stage to trace into WORKDIR/profile; (): none
    return c


def text_config() -> ConfigDict:
    """The same for a decoder alone: `get_config` without what only a model with images has."""
    c = get_config()
    c.model.family = "text"
    for group in (c.model, c.init):
        del group.vision, group.projector
    return c


def text_stage() -> ConfigDict:
    """The same for a decoder alone: `stage` without what only a model with images has."""
    c = stage()
    del c.parts.vision, c.parts.projector, c.parts.lora.vision, c.data.media
    return c


def stage() -> ConfigDict:
    """One stage: everything trains, LLaVA-1.5's optimizer."""
    c = ConfigDict()
    c.objective = "sft"  # jaxvlm/objectives/registry.py has the others, and what one of your own takes
    # "frozen", "full", or for vision and language "lora", with the settings below
    c.parts = ConfigDict()
    c.parts.vision = "full"  # the encoder
    c.parts.projector = "full"  # between encoder and decoder; it has no adapters
    c.parts.language = "full"  # the decoder
    c.parts.lora = ConfigDict()
    for part in ("vision", "language"):
        lora = ConfigDict()
        lora.rank = 128  # inner width of an adapter: the larger, the more it can learn, and the more memory it takes
        lora.alpha = 256.0  # an adapter is scaled by alpha / rank
        lora.dropout = 0.0  # of what enters an adapter, while training
        lora.targets = "blocks/.*"  # regex of the projections that get one, such as "blocks/attention/(q|v)"
        lora.rslora = False  # scale by alpha / sqrt(rank) instead of alpha / rank
        c.parts.lora[part] = lora
    c.frozen_dtype = "bfloat16"  # in which frozen weights are kept

    c.data = ConfigDict()
    # A LLaVA .json or .jsonl file, "FOLDER/dataset_info.json:NAME" of LLaMA-Factory, "hf:NAME_OR_FOLDER:SPLIT",
    # "tfds:NAME:SPLIT", a folder that `inspect_data prepare` wrote, or "easy_vqa:train".
    c.data.source = ""
    # Several in place of one: ((source, {"weight": 0.25, "limit": 5000, "boxes": "pixels"}), ...); a number alone
    # is the weight, how often an epoch holds each record of that source.
    c.data.mix = ()
    c.data.image_folder = ""  # what relative image paths are relative to; "": the folder of the file that names them
    c.data.allow_outside = False  # whether an image path may lead out of that folder
    c.data.answers = "all"  # which answers of a conversation are trained on: "all", or the "last" (of pairs always)
    c.data.heldout = 0.0  # share of the records (by a hash of their id) that is not trained on but evaluated
    c.data.template = "vicuna_v1"  # plain, vicuna_v1, llama2, chatml, or tokenizer: its own chat template
    c.data.system = placeholder(str)  # None: the template's own system message; "": no message
    c.data.control_tokens = ()  # control tokens that are meant where data spells them, as ("<|box_start|>",)
    c.data.stop_tokens = ()  # tokens that end an answer in addition to the template's and the tokenizer's
    # In what coordinates the data writes boxes and points (docs/data.md): "pixels" of the image, "thousandths" or
    # "fractions" of its sides, "resized": pixels of what the model gets. They are rewritten for the model. "": not.
    c.data.boxes = ""
    c.data.tokens = 2048  # T, of a row
    c.data.media = ConfigDict()  # what images become in a row: the family's own options
    c.data.media.units = 1  # of a row; a unit of LLaVA is an image slot
    c.data.media.aspect = "pad"  # pad: to a square with the mean colour; square: centre crop; squeeze: each axis
    c.data.pack = True  # several samples in a row, where they fit
    c.data.augment = ConfigDict()
    c.data.augment.flip = False  # mirror images left to right at random; only where left and right mean nothing
    c.data.augment.shift = 0  # move images by at most this many pixels
    c.data.augment.shuffle_turns = False  # new order of the rounds in each epoch, where they do not build on each other
    c.data.on_bad = "fail"  # a record that breaks a rule: "fail" stops with all of them named, "skip" counts it
    c.data.workers = 0  # processes that decode images; 0: threads of this one

    c.optimizer = ConfigDict()
    c.optimizer.learning_rate = 2e-5  # at the end of the warm-up
    c.optimizer.schedule = "cosine"  # cosine or linear to 0, constant, or wsd: constant, and to 0 in the last fifth
    c.optimizer.warmup = 0.03  # share of the steps
    c.optimizer.weight_decay = 0.0  # share of a weight that an update removes, times the learning rate
    c.optimizer.no_weight_decay = (r".*/(scale|bias)",)  # patterns of parameters that are never decayed
    c.optimizer.groups = ()  # ((pattern, {"learning_rate": ..., "weight_decay": ...}), ...); the first match counts
    c.optimizer.b1 = 0.9  # decay of the mean of gradients
    c.optimizer.b2 = 0.999  # decay of the mean of their squares
    c.optimizer.epsilon = 1e-8  # added to the root of the latter
    c.optimizer.clip_norm = 1.0  # of the gradient, over all trained parameters

    c.epochs = 1.0  # times that the data is gone through; 0.5 is half of it
    c.global_batch_size = 128  # rows of one step
    c.micro_batches = 1  # pieces in which a step goes through its rows, to save memory
    # Of the compiler for TPUs or GPUs ("xla_gpu_..."), "NAME=VALUE NAME=VALUE", added to those of jaxvlm/tuning.py
    c.compiler_options = ""
    c.log_every = 1  # steps
    c.eval_every = 0  # steps; 0: never
    c.eval_records = 64  # of the held-out ones, for loss and for answers
    # Benchmarks that are asked while the stage trains, ("pope", "vqav2:val"): `evaluate --suite list` has them
    c.suites = ()
    c.suites_every = 0  # steps
    c.suites_limit = 256  # questions of each, a fixed random choice; 0: all
    c.checkpoint_every = 1000  # steps; the last step is always saved
    c.keep_checkpoints = 2  # of each stage, the newest
    c.on_nonfinite = "stop"  # loss or gradient not finite: "stop", or "skip": leave that update out and continue
    c.nonfinite_limit = 3  # this many in a row stop the run in either case; their batches are in WORKDIR/nonfinite
    return c
