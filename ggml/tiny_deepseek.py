# SPDX-License-Identifier: Apache-2.0
"""Writes a small `deepseek2` model with random weights and the real sizes of MLA attention: 512 +
64 columns of KV, heads of 128 + 64.

    python tiny_deepseek.py FILE [--heads 16] [--layers 3]

There is nothing to learn from its words, but its attention is computed exactly as that of a real
model, and its logits depend on it.
"""

import argparse

import gguf
import numpy as np

VOCABULARY = 512
CONTEXT = 16384


def write(path, heads=16, layers=3, embedding=512, feed_forward=512, seed=1, context=CONTEXT):
    rng = np.random.default_rng(seed)
    nope, rope, latent, value, q_latent = 128, 64, 512, 128, 256
    w = gguf.GGUFWriter(path, "deepseek2")
    w.add_name("random deepseek2")
    w.add_block_count(layers)
    w.add_context_length(context)
    w.add_embedding_length(embedding)
    w.add_feed_forward_length(feed_forward)
    w.add_leading_dense_block_count(layers)
    w.add_head_count(heads)
    w.add_head_count_kv(1)
    w.add_layer_norm_rms_eps(1e-6)
    w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(rope)
    w.add_q_lora_rank(q_latent)
    w.add_kv_lora_rank(latent)
    w.add_key_length(latent + rope)
    w.add_value_length(latent)
    w.add_key_length_mla(nope + rope)
    w.add_value_length_mla(value)
    w.add_expert_count(0)
    w.add_expert_used_count(0)
    w.add_expert_shared_count(0)
    w.add_expert_feed_forward_length(feed_forward)
    w.add_expert_weights_scale(1.0)
    w.add_vocab_size(VOCABULARY)
    w.add_tokenizer_model("llama")
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)]
    tokens += [f"word{i}" for i in range(VOCABULARY - len(tokens))]
    kinds = gguf.TokenType
    w.add_token_list(tokens)
    w.add_token_scores([0.0] * VOCABULARY)
    w.add_token_types(
        [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL]
        + [kinds.BYTE] * 256
        + [kinds.NORMAL] * (VOCABULARY - 259)
    )
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)

    def random(name, *shape, gain=1.0, exact=False):  # shape as numpy has it: rows, columns
        scale = gain / np.sqrt(shape[-1])
        w.add_tensor(
            name, (rng.standard_normal(shape) * scale).astype(np.float32 if exact else np.float16)
        )

    def ones(name, n):
        w.add_tensor(name, np.ones(n, np.float32))

    random("token_embd.weight", VOCABULARY, embedding, gain=np.sqrt(embedding))
    ones("output_norm.weight", embedding)
    random("output.weight", VOCABULARY, embedding, gain=2.0)
    for i in range(layers):
        b = f"blk.{i}."
        ones(b + "attn_norm.weight", embedding)
        random(b + "attn_q_a.weight", q_latent, embedding)
        ones(b + "attn_q_a_norm.weight", q_latent)
        random(b + "attn_q_b.weight", heads * (nope + rope), q_latent)
        random(b + "attn_kv_a_mqa.weight", latent + rope, embedding)
        ones(b + "attn_kv_a_norm.weight", latent)
        random(b + "attn_k_b.weight", heads, latent, nope)
        random(b + "attn_v_b.weight", heads, value, latent)
        random(b + "attn_output.weight", embedding, heads * value, gain=1.5)
        ones(b + "ffn_norm.weight", embedding)
        random(b + "ffn_gate.weight", feed_forward, embedding)
        random(b + "ffn_up.weight", feed_forward, embedding)
        random(b + "ffn_down.weight", embedding, feed_forward)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--layers", type=int, default=3)
    arguments = parser.parse_args()
    write(arguments.file, arguments.heads, arguments.layers)
