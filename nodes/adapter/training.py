"""A MODEL as the frozen base of a training: it runs inside a sampler, so that ComfyUI loads, offloads and cleans up.

The base is only ever evaluated, in inference mode and as an inversion evaluates it, so ComfyUI's ``in_training`` stays
off: it would swap kernels for ones that carry gradients, and the labels would no longer be what an inversion sees.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.samplers
import torch
from torch import Tensor

from ...deepinv_core.errors import DeepInvError
from ...deepinv_core.memory import out_of_memory
from ...training.base_model import Base, Conditioned
from ...training.loop import Trained
from .latents import as_taken, decoded
from .models import model_info
from .prompts import Prompts, read, stack
from .sampling import SEED, Call, run_inside
from .velocity import GuiderVelocity, checked_grid, give_back, schedule

if TYPE_CHECKING:
    from ...deepinv_core.solver import Network

SCHEDULER = "simple"
"""DeepInv Invert's default; a solver serves others too."""

KEPT = 4
"""What training keeps besides the weights, in their size: gradients, two of Adam's moments, the average."""

ACTIVATION_BYTES = 34
"""A token, channel and block of a transformer at 2 bytes a value, without attention maps (arXiv 2205.05198, eq. 1)."""


def in_model_space(model: Any, latents: Sequence[dict[str, Any]]) -> list[Tensor]:
    """LATENTs as an inversion sees them: ``[n, C, ...]`` each, float32, on the CPU, fit for autograd.

    Raises:
        DeepInvError: a latent of another shape, or with other channels than the model's.
    """
    found = []
    for latent in latents:
        samples = as_taken(model, latent["samples"])
        with torch.inference_mode(False):
            own = samples.to("cpu", torch.float32).clone()
            if torch.count_nonzero(own) > 0:  # ComfyUI leaves an empty latent unshifted
                own = model.model.process_latent_in(own)
            found.append(own.clone())
    return found


class _Guider(comfy.samplers.CFGGuider):
    """A guider that keeps its conditionings as they were before it fitted them to one latent shape.

    ComfyUI fits areas, masks and size embeddings to the noise it is given once; here they are fitted to each shape
    that comes along.
    """

    def inner_sample(self, *args: Any, **kwargs: Any) -> Tensor:
        """As ComfyUI's."""
        self.unfitted = [entry.copy() for entry in self.conds["positive"]]
        return super().inner_sample(*args, **kwargs)

    def fit(self, entries: slice, latent: Tensor) -> dict[str, list[dict[str, Any]]]:
        """Some of the conditionings for a latent ``[B, C, ...]``."""
        conds = {k: [entry.copy() for entry in self.unfitted[entries]] for k in ("positive", "negative")}
        fitted: dict[str, list[dict[str, Any]]] = comfy.samplers.process_conds(
            self.inner_model, latent, conds, latent.device, latent_image=latent, seed=SEED, latent_shapes=[latent.shape]
        )
        return fitted


def _to_the_end(compute: Callable[[], Tensor]) -> Tensor:
    """What ``compute`` returns, although the user interrupts it: training ends between two steps.

    ComfyUI raises an interrupt once, in whatever layer of a model runs; here it is put off to the next progress call.
    """
    interrupted = False
    while True:
        try:
            result = compute()
        except comfy.model_management.InterruptProcessingException:
            interrupted = True
            continue
        if interrupted:
            comfy.model_management.interrupt_current_processing()
        return result


class PromptedVelocity(GuiderVelocity):
    """The base under the prompts of a batch, a guider call for each different prompt in it; no gradient passes.

    The conditionings are fitted to the first latent that comes, which is the clean one.
    """

    def __init__(
        self,
        guider: _Guider,
        entries: Sequence[slice],
        prompts: Sequence[int],
        extra_args: dict[str, Any],
    ) -> None:
        super().__init__(guider, self._denoised, extra_args)
        self._entries, self._prompts = entries, torch.tensor(prompts)
        self._conds: dict[tuple[int, torch.Size], dict[str, list[dict[str, Any]]]] = {}

    def __call__(self, z: Tensor, sigma: float) -> Tensor:
        """Velocity at ``z [B, C, ...]``, B as many as there are prompts."""
        with torch.inference_mode():
            v = _to_the_end(partial(super().__call__, z, sigma))
        return v.clone()  # outside inference mode, so that autograd may keep it

    def _denoised(self, x: Tensor, sigma: Tensor, **extra: Any) -> Tensor:
        present = self._prompts.unique().tolist()
        if len(present) == 1:
            return self._under(present[0], x, sigma, extra)
        out = torch.empty_like(x)
        for prompt in present:
            rows = (self._prompts == prompt).nonzero()[:, 0].to(x.device)
            out[rows] = self._under(prompt, x[rows], sigma[rows], extra).to(out)
        return out

    def _under(self, prompt: int, x: Tensor, sigma: Tensor, extra: dict[str, Any]) -> Tensor:
        key = prompt, x.shape
        if key not in self._conds:
            self._conds[key] = self._guider.fit(self._entries[prompt], x)
        self._guider.conds = self._conds[key]
        denoised: Tensor = self._guider(x, sigma, **extra)
        return denoised


Decode = Callable[[Tensor], Tensor]
"""Latents in model space to images ``[B, 3, H, W]`` in [0, 1], on the CPU."""

Train = Callable[[Base, Decode | None], Trained]
"""A training of the base as ComfyUI has loaded it, with its decoder where there is a VAE."""


def _base(model: Any, prompts: Prompts, call: Call) -> Base:
    """The guider in mid-run as the base of a training."""
    device = call.noise.device
    ends = list(accumulate((len(prompt) for prompt in prompts.distinct), initial=0))
    entries = [slice(*pair) for pair in pairwise(ends)]
    texts = [read(prompt, device) for prompt in prompts.distinct]

    def bind(names: tuple[str, ...]) -> Conditioned:
        numbers = prompts.of(names)
        velocity = PromptedVelocity(call.guider, entries, numbers, call.extra_args)
        if len(set(numbers)) == 1:
            return Conditioned(velocity, *texts[numbers[0]])
        return Conditioned(velocity, stack([texts[k][0] for k in numbers]), stack([texts[k][1] for k in numbers]))

    @lru_cache
    def levels(steps: int) -> Tensor:
        return checked_grid(call.model_sampling, schedule(model, SCHEDULER, steps))

    return Base(model_info(model), bind, lambda steps, latent: levels(steps), device, give_back)


@torch.inference_mode()
def _decode(vae: Any, guider: _Guider, shape: torch.Size, latents: Tensor) -> Tensor:
    """Latents in model space to images, with the base of a training kept where it is."""
    model = guider.model_patcher
    images = _to_the_end(partial(decoded, vae, model.model.process_latent_out(latents)))
    memory = model.memory_required(list(shape))  # the VAE may have pushed the base out
    comfy.model_management.load_models_gpu([model, *guider.loaded_models], memory_required=memory)
    return images.movedim(-1, 1).float().cpu().clamp(0, 1)


def run_training(
    model: Any, vae: Any, prompts: Prompts, network: Network, shape: Sequence[int], train: Train
) -> Trained:
    """Train with ComfyUI's model management around it; whatever happens, the device is left as it was.

    Args:
        model: the user's MODEL; not changed.
        vae: its VAE, for images of what is reached; or None.
        prompts: of the latents.
        network: what is trained; moved to the model's device, and back to the CPU in the end.
        shape: of the largest batch ``[B, C, ...]``, to reserve memory for.
        train: called once all is in place, outside inference mode.

    Raises:
        DeepInvError: too little memory. What ``train`` raises passes through.
    """
    working = model.clone()
    guider = _Guider(working)
    entries = [entry for prompt in prompts.distinct for entry in prompt]
    guider.set_conds(entries, entries)
    reserved: list[Tensor] = []

    def run(call: Call) -> tuple[Tensor, Trained]:
        reserved.clear()  # the base is loaded beside it; now the training may have it
        first = [slice(0, len(prompts.distinct[0]))]
        asked = PromptedVelocity(call.guider, first, [0], call.extra_args)
        call.require_memoryless(asked, call.latent[:1], slice(0, 1))
        decode = None if vae is None else partial(_decode, vae, call.guider, call.noise.shape)
        with torch.inference_mode(False):
            return call.latent, train(_base(working, prompts, call), decode)

    blank = torch.zeros(tuple(shape))
    kept, passing = _memory(network, shape, working.load_device)
    try:
        comfy.model_management.free_memory(kept + passing, working.load_device)
        _move(network, working.load_device)
        if working.load_device.type == "cuda":  # so that ComfyUI doesn't fill it with the base
            coming = kept * KEPT // (KEPT + 1) + passing
            reserved.append(torch.empty(coming, dtype=torch.uint8, device=working.load_device))
        trained = run_inside(guider, blank, schedule(model, SCHEDULER, 16), run)[1]
        _move(trained.network, "cpu")
        return trained
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)  # they hold what the training had on the device
        if not out_of_memory(error):
            raise
        raise DeepInvError(
            f"there is not enough memory to train on batches of {list(shape)}, about {(kept + passing) / 2**30:.1f} "
            "GiB beside the model: set batch lower, or take a smaller preset or smaller latents"
        ) from error
    finally:
        reserved.clear()
        _move(network, "cpu")
        del guider
        give_back()


def _move(network: Network, device: torch.device | str) -> None:
    network.zero_grad(set_to_none=True)
    with torch.inference_mode(False):
        network.to(device)


def _memory(network: Network, shape: Sequence[int], device: torch.device) -> tuple[int, int]:
    """Bytes that a training holds throughout, and about those that a pass needs for its activations."""
    config: Any = network.config  # a transformer's, whichever its kind
    weights = sum(parameter.nbytes for parameter in network.parameters())
    blocks = getattr(config, "layers", 0) or 2 * (config.layers_left + config.layers_right)
    tokens = math.prod(shape) // shape[1] // config.patch_size**2
    wide = 1 if device.type == "cuda" else 2  # float32 elsewhere
    return weights * (KEPT + 1), ACTIVATION_BYTES * wide * tokens * config.hidden * blocks
