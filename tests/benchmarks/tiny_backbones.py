"""CLIP, DINO and SqueezeNet of the right geometry and random weights, small enough for tests, in users' formats."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, ViTConfig, ViTModel

from comfyui_deepinv.benchmarks.networks.squeeze import KIND, SqueezeLpips
from comfyui_deepinv.deepinv_core import checkpoint


def save_clip(folder: Path) -> Path:
    """A CLIP folder with a tokenizer of single letters."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    text = {"vocab_size": 54, "hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4}
    text |= {"num_hidden_layers": 2, "bos_token_id": 52, "eos_token_id": 53, "pad_token_id": 53}
    vision = {"hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 2}
    vision |= {"image_size": 56, "patch_size": 14}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)).save_pretrained(folder)
    letters = [chr(c) for c in range(97, 123)]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77).save_pretrained(folder)
    return folder


def save_dino(folder: Path, *, layers: int = 12) -> Path:
    """DINO's ViT-B/8 but 16 wide."""
    torch.manual_seed(1)
    config = ViTConfig(
        hidden_size=16,
        intermediate_size=24,
        num_attention_heads=2,
        num_hidden_layers=layers,
        image_size=224,
        patch_size=8,
    )
    model = ViTModel(config, add_pooling_layer=False)
    for name, value in model.named_parameters():  # the default initialisation is near 0, where every token is the same
        if value.ndim > 1:
            torch.nn.init.normal_(value, std=0.3)
        elif name.endswith("bias"):
            torch.nn.init.normal_(value, std=0.1)
    model.save_pretrained(folder)
    return folder


def without(folder: Path, ending: str) -> None:
    """Take the tensors whose name ends so out of a saved folder."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    kept = {name: value for name, value in tensors.items() if not name.endswith(ending)}
    assert len(kept) < len(tensors)
    save_file(kept, file, metadata={"format": "pt"})


def random_squeeze() -> SqueezeLpips:
    """SqueezeNet's layers with random weights, the heads not negative as LPIPS' are."""
    torch.manual_seed(2)
    network = SqueezeLpips()
    for head in network.heads:
        head.weight.data.abs_()
    return network.eval().requires_grad_(False)


def save_squeeze(path: Path, network: SqueezeLpips) -> None:
    """One file of everything."""
    checkpoint.save(path, network.state_dict(), checkpoint.header(KIND))
