"""Detection from scratch in minutes: a small DINO finds handwritten digits on photographs.

It reproduces no published result. It shows every part of detection at work on real images.

    fastervit train --config=detect_digits --workdir=runs/detect_digits
"""

from fastervit_jax.runs.config import default_config


def get_config():
    config = default_config()
    config.task = "detection"
    config.model.name = "dino_4scale_faster_vit_0_224"
    config.model.num_classes = 10
    config.model.dtype = "float32"
    config.model.depths = (1, 1, 2, 1)
    config.model.dim = 24
    config.model.in_dim = 16
    config.model.drop_path_rate = 0.0
    config.model.hidden = 64
    config.model.heads = 4
    config.model.feedforward = 256
    config.model.encoder_layers = 2
    config.model.decoder_layers = 2
    config.model.queries = 30

    config.data.train = "scattered_digits:train"
    config.data.validation = "scattered_digits:validation"
    config.data.num_workers = 0
    config.data.buckets = ((112, 112),)
    config.data.bucket_window = 1
    config.data.max_boxes = 8
    config.batch_size = 4
    config.group_size = 4

    # Digits are not mirrored.
    config.flip = 0.0
    config.resize.short_sides = (96, 104, 112)
    config.resize.long_side = 112
    config.resize.crop_probability = 0.5
    config.resize.crop_short_sides = (96, 112)
    config.resize.crop_sides = (72, 104)
    config.denoising.queries = 60
    # Then the class of a denoising query has to be read from the image.
    config.denoising.label_noise = 0.5

    config.epochs = 24
    config.cooldown_epochs = 0
    config.optimizer.learning_rate = 1e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_epochs = 1.0
    config.optimizer.weight_decay = 0.1
    config.optimizer.clip_norm = 0.1
    config.mesa.weight = 0.0
    config.ema_decay = 0.998

    config.evaluation.batch_size = 16
    config.evaluation.short_side = 112
    config.evaluation.every_epochs = 6
    config.checkpoint.every_epochs = 6
    config.checkpoint.best_metric = "AP"
    config.log_every_steps = 25
    return config
