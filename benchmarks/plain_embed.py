"""A plain script to compare `embed` with: torch, nibabel, the .pth, fp32 class tokens of every slice."""

from __future__ import annotations

import sys

import nibabel as nib
import numpy as np
import torch
from torch.nn import functional

from meddinov3_stroke.backbone.vit import vit_base

weights, volume, output = sys.argv[1:4]
state = torch.load(weights, map_location="cpu", weights_only=True)["teacher"]
state = {name.removeprefix("backbone."): tensor for name, tensor in state.items() if "dino_head" not in name}
vit = vit_base(layerscale_init=1e-5, n_storage_tokens=4, qkv_bias=False, mask_k_bias=True)
vit.load_state_dict({name: tensor for name, tensor in state.items() if "ibot" not in name})
vit.eval()
voxels = np.asarray(nib.as_closest_canonical(nib.load(volume)).dataobj, dtype=np.float32)
hu = torch.from_numpy(np.ascontiguousarray(voxels[::-1, ::-1].transpose(2, 1, 0)))
tokens = []
with torch.inference_mode():
    for batch in hu[:, None].split(8):
        x = ((batch.clamp(-1000, 1000) - 65.1084213256836) / 178.01663208007812).expand(-1, 3, -1, -1)
        x = functional.interpolate(x, size=(224, 224), mode="bilinear", antialias=True, align_corners=False)
        tokens.append(vit.forward_features(x)["x_norm_clstoken"].numpy())
np.save(output, np.concatenate(tokens))
