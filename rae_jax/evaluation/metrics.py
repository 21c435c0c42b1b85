"""The metrics, each declared once: the same record serves in training, at the end of a run, and in `tools.evaluate`.

A metric compares a judged set of images with a reference. What is measured of each image, the quantity, is a value of
the pair (`psnr`), a feature `<network>.<feature>` (`inception.pool`), or an array of the batch (`label`).

name                            quantity, and what is made of it                            judged -> reference
psnr, ssim                      dB, and in [0, 1]; mean over pairs of 8-bit images          reconstructions -> originals
lpips, lpips_vgg16              LPIPS 0.1 through AlexNet, or VGG16; mean over pairs        reconstructions -> originals
fid                             Fréchet distance of inception.pool (Heusel et al., 2017)    samples -> images, moments
sfid                            the same of inception.spatial (Nash et al., 2021)           samples -> images, moments
rfid                            Fréchet distance of inception.pool                          reconstructions -> originals
is                              inception score of inception.logits, in random order        samples
precision, recall               of inception.pool (Kynkäänniemi et al., 2019)               samples -> images
fdr6                            RAEv2's mean over six spaces of FDr, a Fréchet distance     samples -> images, moments
                                over a constant of the space (`fdr.py`)
fdr_inception, fdr_convnext_v2, FDr in one of the six: inception.pool, or the vector of     samples -> images, moments
fdr_dinov2_l, fdr_mae_l,        one of `representations.py`
fdr_siglip2_so400m, fdr_clip_l
mind_inception,                 MIND in one of the six                                      samples -> images
mind_convnext_v2,
mind_dinov2_l, mind_mae_l,
mind_siglip2_so400m,
mind_clip_l
fd_encoder                      Fréchet distance of encoder.mean_token, the mean of the     samples -> images
                                tokens of the experiment's encoder
rfd_encoder                     Fréchet distance of encoder.mean_token                      reconstructions -> originals
precision_encoder,              as precision and recall, of encoder.mean_token              samples -> images
recall_encoder
fd_latent                       Fréchet distance of latent.mean_token, the mean of the      samples -> images
                                tokens of the latent in which the generator works
linear_probe_accuracy           logistic regression of encoder.mean_token                   held-out -> training images
original_linear_probe_accuracy  the same of original_encoder.mean_token, the encoder        held-out -> training images
                                before a later stage tuned it
attached_head_accuracy          the original encoder's regression on encoder.mean_token     held-out -> training images
linear_head_accuracy            linear_head.class is label: the published classifier's      held-out
                                first choice
original_linear_head_accuracy   the same of original_linear_head.class                      held-out
judge_accuracy                  a classifier of pixels sees the class that the image has    held-out -> training images
label_agreement                 it sees the class that was asked for                        samples -> training images
class_diversity                 standard deviation of a pixel among images of one class,    samples; training images
                                of 8 x 8 grey pixels from 0 to 16; mean over both

Published numbers are fid, sfid, is, precision, recall, rfid, psnr, ssim, lpips, and those of FDr and MIND. Those of an
encoder or a latent compare runs that share it, and no others. Ends of names tell which set is judged where a run has
several: `_1step`, `_2step` the samples of a flow map, `_train` the training images. A number whose expectation depends
on how many images are judged ends in that count, unless it is the 50,000 of published ones: `fid_5000` (`named`).
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rae_jax.evaluation import precision_recall
from rae_jax.evaluation.class_diversity import class_diversity
from rae_jax.evaluation.evaluator import Needs, Summary
from rae_jax.evaluation.fdr import CONSTANTS, fdr, fdr6, mind
from rae_jax.evaluation.frechet import frechet_distance, require_samples
from rae_jax.evaluation.image_quality import psnr, ssim
from rae_jax.evaluation.inception_score import in_random_order, inception_score
from rae_jax.evaluation.linear_probe import linear_probe, probe_accuracy

Params = dict[str, Any]  # of components, by name
OfPairs = Callable[[Params, jax.Array, jax.Array], jax.Array]  # (params, judged, reference) -> values [B]
OfImages = Callable[[Params, jax.Array], dict[str, jax.Array]]  # (params, images) -> {feature: [B, D]}
JUDGED, REFERENCE = "judged", "reference"
PUBLISHED = 50_000  # images that published numbers are of
HELD_BYTES = 4 * 2**30  # of the features or pixels that one metric may hold in memory


@dataclasses.dataclass(frozen=True)
class Metric:
    """One number.

    Attributes:
      name: what it is called everywhere.
      better: "higher" or "lower".
      compute: `(judged, reference) -> value`.
      values: of each judged image (or its pair with the reference), whose means are needed.
      moments: features whose means and covariances are needed of both sets.
      rows: quantities that are needed of every image of both sets, which are held in memory.
      alone: nothing is needed of a reference.
      biased: its expectation depends on how many images are judged.
    """

    name: str
    better: str
    compute: Callable[[Summary, Summary], float]
    values: tuple[str, ...] = ()
    moments: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    alone: bool = False
    biased: bool = False


def mean_of_pairs(name: str, better: str) -> Metric:
    return Metric(name, better, lambda judged, reference: judged.means[name], values=(name,))


def _frechet(name: str, feature: str) -> Metric:
    def compute(judged: Summary, reference: Summary) -> float:
        return frechet_distance(judged.gaussians[feature], reference.gaussians[feature])

    return Metric(name, "lower", compute, moments=(feature,), biased=True)


def _of_manifolds(name: str, share: Callable[..., float], feature: str) -> Metric:
    def compute(judged: Summary, reference: Summary) -> float:
        return share(reference.rows[feature], judged.rows[feature])

    return Metric(name, "higher", compute, rows=(feature,), biased=True)


def _probe(name: str, trained_on: str, applied_to: str) -> Metric:
    def compute(judged: Summary, reference: Summary) -> float:
        probe = linear_probe(reference.rows[trained_on], reference.rows["label"])
        return probe_accuracy(probe, judged.rows[applied_to], judged.rows["label"])

    return Metric(name, "higher", compute, rows=tuple(dict.fromkeys((trained_on, applied_to, "label"))))


def _of_choice(name: str, chosen: str) -> Metric:
    def compute(judged: Summary, reference: Summary) -> float:
        del reference
        return float(np.mean(judged.rows[chosen][:, 0] == judged.rows["label"]))

    return Metric(name, "higher", compute, rows=(chosen, "label"), alone=True)


def _class_diversity(judged: Summary, reference: Summary) -> float:
    del reference
    return class_diversity(judged.rows["small_image"], judged.rows["label"])


def _inception_score(judged: Summary, reference: Summary) -> float:
    del reference
    return inception_score(in_random_order(judged.rows[_LOGITS]))


def _of_space(quantity: str) -> tuple[Metric, Metric]:
    """FDr and MIND in the space of `quantity`."""

    def distance(judged: Summary, reference: Summary) -> float:
        return fdr(judged.gaussians[quantity], reference.gaussians[quantity], quantity)

    def sliced(judged: Summary, reference: Summary) -> float:
        return mind(judged.rows[quantity], reference.rows[quantity])

    space = quantity.partition(".")[0]
    return (
        Metric(f"fdr_{space}", "lower", distance, moments=(quantity,), biased=True),
        Metric(f"mind_{space}", "lower", sliced, rows=(quantity,), biased=True),
    )


def _fdr6(judged: Summary, reference: Summary) -> float:
    return fdr6(judged.gaussians, reference.gaussians)


_LOGITS = "inception.logits"
_ENCODER, _ORIGINAL = "encoder.mean_token", "original_encoder.mean_token"
METRICS = {
    metric.name: metric
    for metric in (
        mean_of_pairs("psnr", "higher"),
        mean_of_pairs("ssim", "higher"),
        mean_of_pairs("lpips", "lower"),
        mean_of_pairs("lpips_vgg16", "lower"),
        _frechet("fid", "inception.pool"),
        _frechet("sfid", "inception.spatial"),
        _frechet("rfid", "inception.pool"),
        Metric("is", "higher", _inception_score, rows=(_LOGITS,), alone=True, biased=True),
        _of_manifolds("precision", precision_recall.precision, "inception.pool"),
        _of_manifolds("recall", precision_recall.recall, "inception.pool"),
        Metric("fdr6", "lower", _fdr6, moments=tuple(CONSTANTS), biased=True),
        *(metric for quantity in CONSTANTS for metric in _of_space(quantity)),
        _frechet("fd_encoder", _ENCODER),
        _frechet("rfd_encoder", _ENCODER),
        _of_manifolds("precision_encoder", precision_recall.precision, _ENCODER),
        _of_manifolds("recall_encoder", precision_recall.recall, _ENCODER),
        _frechet("fd_latent", "latent.mean_token"),
        _probe("linear_probe_accuracy", _ENCODER, _ENCODER),
        _probe("original_linear_probe_accuracy", _ORIGINAL, _ORIGINAL),
        _probe("attached_head_accuracy", _ORIGINAL, _ENCODER),
        _of_choice("linear_head_accuracy", "linear_head.class"),
        _of_choice("original_linear_head_accuracy", "original_linear_head.class"),
        mean_of_pairs("judge_accuracy", "higher"),
        mean_of_pairs("label_agreement", "higher"),
        Metric("class_diversity", "higher", _class_diversity, rows=("small_image", "label"), alone=True, biased=True),
    )
}  # fmt: skip


def lpips_name(network: str) -> str:
    """The metric of LPIPS through `network`: plain "lpips" is AlexNet's, as its authors recommend."""
    return "lpips" if network == "alexnet" else f"lpips_{network}"


def named(metric: Metric, count: int, end: str = "") -> str:
    """What the value of `metric` over `count` judged images is called; `end` tells which of several sets they are.

    A biased one of other than `PUBLISHED` images ends in their number, so that it is not taken for what it cannot be
    compared with: of fewer images a Fréchet distance is larger, and precision, recall and inception score are others.
    """
    return f"{metric.name}{end}" + (f"_{count}" if metric.biased and count != PUBLISHED else "")


def against(metric: Metric, stored: Summary) -> Metric:
    """`metric` to a reference of which what it takes is `stored`: nothing is needed of another."""
    return dataclasses.replace(metric, compute=lambda judged, _: metric.compute(judged, stored), alone=True)


PIXELS: dict[str, OfPairs] = {"psnr": lambda params, a, b: psnr(a, b), "ssim": lambda params, a, b: ssim(a, b)}


def of_lpips(distance: OfPairs) -> OfPairs:
    """LPIPS of pairs of uint8 images, from the `distance` of images in [-1, 1]."""
    return lambda params, a, b: distance(params, *(x.astype(jnp.float32) / 127.5 - 1 for x in (a, b)))


def needed(metrics: Iterable[Metric]) -> dict[str, Needs]:
    """What `metrics` need of the judged set and of the reference."""
    needs = {JUDGED: Needs(), REFERENCE: Needs()}
    for metric in metrics:
        both = Needs(moments=frozenset(metric.moments), rows=frozenset(metric.rows))
        needs[JUDGED] |= both | Needs(means=frozenset(metric.values))
        needs[REFERENCE] |= Needs() if metric.alone else both
    return needs


def measured(
    params: Params,
    images: Mapping[str, jax.Array],
    needs: Mapping[str, Needs],
    *,
    features: Mapping[str, OfImages],
    pairs: Mapping[str, OfPairs],
) -> dict[str, dict[str, jax.Array]]:
    """What is needed of a batch of uint8 images, `{set: {quantity: [B, ...]}}`; traceable.

    Args:
      images: of the sets that are there, `[B, H, W, 3]`.
      features: of a network's name.
      pairs: the values of pairs.
    """
    found: dict[str, dict[str, jax.Array]] = {}
    for name, batch in images.items():
        found[name], wanted = {}, needs[name].moments | needs[name].rows
        for network in sorted({quantity.partition(".")[0] for quantity in wanted if "." in quantity}):
            of_network = features[network](params, batch)
            found[name] |= {
                quantity: rows.astype(jnp.float32)
                for feature, rows in of_network.items()
                if (quantity := f"{network}.{feature}") in wanted
            }
    if images.keys() >= {JUDGED, REFERENCE}:
        for name in sorted(needs[JUDGED].means & pairs.keys()):
            found[JUDGED][name] = pairs[name](params, images[JUDGED], images[REFERENCE])
    return found


def computed(metrics: Iterable[Metric], judged: Summary, reference: Summary, end: str = "") -> dict[str, float]:
    """The value of each metric, by its name over so many images; see `named`."""
    return {named(metric, judged.count, end): float(metric.compute(judged, reference)) for metric in metrics}


def check_counts(
    metrics: Sequence[Metric], sizes: Mapping[str, int], *, judged: int, reference: int, where: str
) -> None:
    """Raises ValueError unless there are enough images for every one of `metrics`, to be called before any are made.

    Covariances of the reference must have full rank, for which it takes more images than features; of the judged set
    two images give one.

    Args:
      sizes: how many features each feature has, as far as known.
      judged, reference: numbers of images.
      where: which field or file says so, for the message.
    """
    for metric in metrics:
        for feature in metric.moments:
            if feature in sizes and not metric.alone:
                require_samples(reference, sizes[feature], f"{where}: {metric.name}")
            if judged < 2:
                raise ValueError(f"{where}: {metric.name} needs a covariance, and so at least 2 images; got {judged}")


def check_memory(what: str, count: int, size: int, advice: str) -> None:
    """Raises ValueError, with `advice`, if `count` rows of `size` numbers are more than one metric may hold in memory.

    They are counted at 8 bytes, in which scikit-learn computes.
    """
    if (held := 8 * count * size) > HELD_BYTES:
        raise ValueError(
            f"{what} holds {count:,} x {size:,} numbers in memory, {held / 2**30:.3g} GiB of the {HELD_BYTES >> 30} "
            f"allowed; {advice}"
        )


def check_classes(what: str, num_classes: int) -> None:
    """Raises ValueError unless there are classes for `what` to tell apart."""
    if num_classes < 2:
        raise ValueError(f"{what} tells classes apart, but the images have {num_classes or 'none'}; set it to False")
