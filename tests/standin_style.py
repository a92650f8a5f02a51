"""A stand-in of MuQ-MuLan: the hub's three folders with its file names, tiny random networks inside.

`build` makes them without network; `reference` loads them as muq itself does, for comparison.
"""

import contextlib
import io
import json
import random
import warnings
from pathlib import Path

import torch
from safetensors.torch import save_file

FOLDERS = ("MuQ-MuLan-large", "MuQ-large-msd-iter", "xlm-roberta-base")
DIM = 32                      # of all networks
TOWER = {"dim": DIM, "heads": 2, "dim_head": 16, "attn_dropout": 0, "ff_dropout": 0, "ff_mult": 2}


def mulan_config(width: int, muq: str, xlmr: str) -> dict:
    """config.json of MuQ-MuLan; muq and xlmr are names or folders."""
    return {"mulan": {"sr": 24000, "clip_secs": 10, "dim_latent": width,
                      "decoupled_contrastive_learning": True, "hierarchical_contrastive_loss": False,
                      "hierarchical_contrastive_loss_layers": None, "sigmoid_contrastive_loss": False,
                      "rank_contrast": True},
            "audio_model": {"name": muq, "model_dim": DIM, "use_layer_idx": -1},
            "text_model": {"name": xlmr, "model_dim": None, "use_layer_idx": -1},
            "audio_transformer": TOWER | {"tf_depth": 0},
            "text_transformer": TOWER | {"tf_depth": 1, "max_seq_len": 1024}}


def muq_config() -> dict:
    """config.json of MuQ: the real one's statistics, smaller sizes."""
    from transformers import Wav2Vec2ConformerConfig
    conformer = Wav2Vec2ConformerConfig(
        hidden_size=DIM, intermediate_size=2 * DIM, num_hidden_layers=2, num_attention_heads=2,
        hidden_act="swish", position_embeddings_type="rotary", num_conv_pos_embeddings=16)
    stat = {"melspec_2048_cnt": 14282760192, "melspec_2048_mean": 6.768444971712967,
            "melspec_2048_std": 18.417922652295623}
    return {"label_rate": 25, "num_codebooks": 1, "codebook_dim": 16, "codebook_size": 32,
            "features": ["melspec_2048"], "hop_length": 240, "n_mels": 128, "conv_dim": 8, "encoder_dim": DIM,
            "encoder_depth": 2, "mask_hop": 0.4, "mask_prob": 0.6, "is_flash": False, "stat": stat,
            "w2v2_config": json.loads(conformer.to_json_string()), "use_rvq_target": True,
            "use_vq_target": False, "use_encodec_target": False, "rvq_ckpt_path": None,
            "recon_loss_ratio": None, "resume_checkpoint": None, "rvq_n_codebooks": 2,
            "rvq_multi_layer_num": 1}


def write_tokenizer(path: Path) -> int:
    """A tokenizer with XLM-R's special tokens, of single letters in lower case. Returns: its size."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    vocabulary = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>", "\u2581")]
    vocabulary += [(chr(code), -1.0) for code in range(33, 127)] + [("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=3))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer.save(str(path))
    return len(vocabulary)


@contextlib.contextmanager
def quiet():
    """Nothing printed, no random state changed: muq does both."""
    state = random.getstate()
    with (torch.random.fork_rng(devices=[]), warnings.catch_warnings(),
          contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())):
        warnings.simplefilter("ignore")
        yield
    random.setstate(state)


def build(folder: Path, width: int = 512) -> Path:
    """Write the three folders below `folder`, for styles of `width` numbers. Returns: folder."""
    from muq import MuQ, MuQConfig
    from transformers import XLMRobertaConfig, XLMRobertaModel
    mulan, muq, xlmr = (folder / name for name in FOLDERS)
    with quiet():
        for path in (mulan, muq, xlmr):
            path.mkdir(parents=True)
        torch.manual_seed(0)
        size = write_tokenizer(xlmr / "tokenizer.json")
        reads = XLMRobertaModel(XLMRobertaConfig(
            vocab_size=size, hidden_size=DIM, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=2 * DIM, max_position_embeddings=514, type_vocab_size=1, bos_token_id=0,
            eos_token_id=2, pad_token_id=1))
        reads.save_pretrained(xlmr)
        (muq / "config.json").write_text(json.dumps(muq_config()))
        hears = MuQ(MuQConfig(**muq_config()))
        save_file({k: v.contiguous() for k, v in hears.state_dict().items()}, muq / "model.safetensors")
        model = from_folders(folder, width)
        # Random networks average every input to nearly the same vector: spread these.
        for name, weight in model.named_parameters():
            if name.endswith("weight") and weight.ndim == 2 and "embeddings" not in name:
                torch.nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        torch.save(model.state_dict(), mulan / "pytorch_model.bin")
        names = ("OpenMuQ/MuQ-large-msd-iter", "xlm-roberta-base")
        (mulan / "config.json").write_text(json.dumps(mulan_config(width, *names)))
    return folder


def from_folders(folder: Path, width: int):
    """muq's own construction, which reads the two inner models from their folders."""
    from muq import MuQMuLan
    return MuQMuLan(mulan_config(width, str(folder / FOLDERS[1]), str(folder / FOLDERS[2]))).eval()


def reference(folder: Path, width: int = 512):
    """The stand-in as muq itself loads it, with transformers' tokenizer of the file as it is."""
    from transformers import PreTrainedTokenizerFast
    with quiet():
        model = from_folders(folder, width)
        model.load_state_dict(torch.load(folder / FOLDERS[0] / "pytorch_model.bin", weights_only=True))
        model.mulan.text._tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(folder / FOLDERS[2] / "tokenizer.json"), bos_token="<s>", eos_token="</s>",
            unk_token="<unk>", pad_token="<pad>")
    return model
