"""Write tests/backbones/golden/: a tiny random CLIP by torch and what torch computes with it.

Run by hand where torch is installed: pip install torch==2.13.0 transformers==5.23.0 numpy safetensors; then
python tests/backbones/make_clip_golden.py
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from transformers import CLIPConfig, CLIPModel

GOLDEN = Path(__file__).parent / "golden"
END = 57


def tiny_config() -> CLIPConfig:
    """Width 32, 3 vision and 2 text layers, 2 heads; two activations so that both are checked."""
    towers = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    return CLIPConfig(
        vision_config={
            **towers,
            "num_hidden_layers": 3,
            "image_size": 32,
            "patch_size": 8,
            "hidden_act": "quick_gelu",
        },
        text_config={
            **towers,
            "num_hidden_layers": 2,
            "vocab_size": 58,
            "max_position_embeddings": 10,
            "hidden_act": "gelu",
            "bos_token_id": 56,
            "eos_token_id": END,
            "pad_token_id": 0,
        },
        projection_dim=16,
    )


def main() -> None:
    torch.manual_seed(0)
    model = CLIPModel(tiny_config()).eval()
    # The default start leaves biases zero and activations near linear: too kind to a wrong port.
    with torch.no_grad():
        for name, param in model.named_parameters():
            scale = 0.3 if param.ndim > 1 else 0.5
            if name != "logit_scale":
                param.add_(torch.randn_like(param) * scale)
    model.save_pretrained(GOLDEN / "model")
    (GOLDEN / "model" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}) + "\n"
    )
    rng = np.random.default_rng(1)
    pixels = rng.standard_normal((2, 32, 32, 3)).astype(np.float32)
    ids = rng.integers(1, 56, (3, 10)).astype(np.int64)
    ids[:, 0] = 56
    for row, end in enumerate((9, 4, 6)):
        ids[row, end], ids[row, end + 1 :] = END, 0
    channels_first = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        vision = model.vision_model(pixel_values=channels_first, output_hidden_states=True)
        text = model.text_model(input_ids=torch.from_numpy(ids))
        image_features = model.visual_projection(vision.pooler_output)
        text_features = model.text_projection(text.pooler_output)
    arrays = {
        "pixels": pixels,
        "ids": ids.astype(np.int32),
        "image_features": (image_features / image_features.norm(dim=-1, keepdim=True)).numpy(),
        "text_features": (text_features / text_features.norm(dim=-1, keepdim=True)).numpy(),
    }
    # hidden_states[0] is the input of block 0; hidden_states[i + 1] is the stream after block i.
    for i, hidden in enumerate(vision.hidden_states):
        arrays[f"hidden{i}"] = hidden.numpy()
    save_file(arrays, GOLDEN / "outputs.safetensors")


if __name__ == "__main__":
    main()
