"""RAE's stage 1 at laptop scale, on crops of photographs: a small encoder, and a decoder with every term of the loss.

    python -m tools.reproduce rae_stage1

makes the folder of crops, runs this config with and without each term, and writes the tables of docs/findings.md. By
hand, with a folder of images of one's own: `--config=configs/photographs.py --config.data.path=FOLDER`. What differs
from the paper beside the size: LPIPS is AlexNet's, a fortieth of VGG16's work; and the discriminator stands on random
features, because DINO's weights would have to be downloaded.
"""

from ml_collections import ConfigDict

from configs import architectures, base
from configs.digits import stage


def get_config() -> ConfigDict:
    config = base.get_config()
    config.stages = ("encoder", "decoder")
    config.data.source = "folder"
    config.data.test_split = "test"
    config.data.image_size = 64
    config.data.num_workers = 0

    config.encoder.input_size = 64
    config.encoder.model = architectures.vision_transformer(image_size=64, patch_size=8, width=64, depth=3, num_heads=4)
    config.encoder.head = ConfigDict(dict(width=64, depth=1, num_heads=4, mlp_dim=256))
    config.encoder.mask_ratio = 0.5
    stage(config.encoder.train, steps=400, batch_size=16, learning_rate=1e-3, ema_decay=0.99)

    config.decoder.model = architectures.vit_decoder(patch_size=8, width=96, depth=2, num_heads=4, mlp_dim=384)
    stage(config.decoder.train, steps=600, batch_size=8, learning_rate=1e-3, ema_decay=0.99)
    config.decoder.loss.lpips_weight = 1.0
    config.decoder.loss.gan_weight = 0.75
    config.decoder.loss.discriminator_from_step = 50
    config.decoder.loss.gan_from_step = 100
    config.lpips.network = "alexnet"
    config.discriminator.weights = "random"
    config.discriminator.model.update(
        image_size=64, patch_size=8, width=32, depth=2, num_heads=4, mlp_dim=128, key_depths=(0, 1)
    )
    for name in ("encoder", "decoder"):
        config[name].train.transform = "random_crop"
        config[name].train.log_every = 10
        config[name].train.checkpoint_every = 200
    return config
