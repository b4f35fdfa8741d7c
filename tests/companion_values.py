"""Makes tests/golden/companions.json: measures beside the Gram for the pairs of the carried llama golden, by transformers in float64.

    python tests/companion_values.py        (torch 2.15.0, transformers 5.24.0)

Per pair and response: Σh over the rows that predict its tokens (h is what the output matrix multiplies), as inner products, and of
each token the entropy of its prediction and its rank.
"""
import json, pathlib, types
import torch
from transformers import AutoModelForCausalLM, modeling_rope_utils
from transformers.models.llama import modeling_llama


class Double(types.ModuleType):
    """torch, where float32 is float64."""
    float = float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


torch.Tensor.float = torch.Tensor.double
for module in (modeling_rope_utils, modeling_llama):
    module.torch = Double("torch")

root = pathlib.Path(__file__).parent / "golden"
model = AutoModelForCausalLM.from_pretrained(root / "llama3_tied", dtype=torch.float64, attn_implementation="eager")
rotary = model.model.rotary_emb
rotary.inv_freq, _ = modeling_rope_utils.ROPE_INIT_FUNCTIONS[rotary.rope_type](model.config)
out = []
for pair in json.load(open(root / "llama3_tied" / "golden.json"))["pairs"]:
    sums, entropies, ranks = [], [], []
    for response in (pair["chosen_ids"], pair["rejected_ids"]):
        prompt = pair["prompt_ids"]
        with torch.no_grad():
            hidden = model.model(torch.tensor([prompt + response[:-1]]), use_cache=False).last_hidden_state[0]
            rows = hidden[len(prompt) - 1:]
            logps = model.lm_head(rows).log_softmax(-1)
        own = logps[torch.arange(len(response)), torch.tensor(response)]
        sums.append(rows.sum(0))
        entropies.append((-(logps * logps.exp()).sum(-1)).tolist())
        ranks.append(((logps > own[:, None]).sum(-1) + 1).tolist())
    w, l = sums
    out.append(dict(hidden=[(w @ w).item(), (w @ l).item(), (l @ l).item()], entropies=entropies, ranks=ranks))
json.dump(out, open(root / "companions.json", "w"))
