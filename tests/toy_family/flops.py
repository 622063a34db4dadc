from jaxvlm.flops import Flops, Segments


def media_flops(model, parts, work):
    return [Flops("vision: patches", 2 * work.rows * work.units * 48 * model.encoder_dim, 1.0, "every patch")]


def vision_positions(model, work):
    return work.rows * work.units


def vision_segments(model, work):
    return [Segments.equal(work.units, work.images)]
