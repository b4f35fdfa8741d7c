//! A description as formulas, for people: what a block computes, under the names of its tensors.
use super::{
    DeltaKind, DeltaMaps, Description, ExpertsKind, LatentKind, Part, PerLayerKind, Qkv, QueryKeyNorm, StackOrder,
    StoredExperts, Up,
};
use crate::layers::{RoutingRule, whole};
use std::fmt::Write;
use tanglescope_kernels::{Activation, Pairs};

/// The last name of a path.
fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

fn function(of: Activation) -> &'static str {
    match of {
        Activation::Silu => "silu",
        Activation::GeluTanh => "gelu_tanh",
        Activation::Gelu => "gelu",
        Activation::Relu => "relu",
        Activation::ReluSquared => "relu²",
        Activation::Sigmoid => "σ",
        Activation::Softplus => "softplus",
        Activation::Exponential => "exp",
    }
}

/// A factor, where it changes something.
fn times(factor: f64) -> String {
    if factor.to_bits() == 1.0f64.to_bits() { String::new() } else { format!("{factor:.4}·") }
}

/// Numbers of blocks, in ranges.
fn ranges(blocks: &[usize]) -> String {
    let mut text: Vec<String> = Vec::new();
    for run in blocks.chunk_by(|a, b| a + 1 == *b) {
        text.push(match run {
            [one] => one.to_string(),
            _ => format!("{}–{}", run[0], run[run.len() - 1]),
        });
    }
    text.join(", ")
}

impl Description {
    /// The function of the model in a screen of formulas: x is the residual stream, a name its map or norm in the checkpoint.
    ///
    /// ```text
    /// x = embed_tokens[token]
    /// u = RMS(x)·input_layernorm
    /// …
    /// ```
    #[must_use]
    pub fn formulas(&self) -> String {
        let (mut text, names) = (String::new(), &self.names);
        let mut line = |of: String| {
            let _infallible = writeln!(text, "{of}");
        };
        let first = if self.first_position == 0 { String::new() } else { format!("{} + ", self.first_position) };
        let positions =
            names.positions.map_or_else(String::new, |name| format!(" + {}[{}position]", last(name), first));
        line(format!("x = {}{}[token]{positions}", times(self.embedding_scale), last(&names.embedding)));
        if let Some(PerLayerKind { width, .. }) = self.per_layer {
            let ([table, projection, norm], d) = (PerLayerKind::OUTSIDE, self.hidden);
            let of_projection = self.norm_text(&format!("{projection} x/√{d}"), Some(norm));
            line(format!("p = ({of_projection} + √{width}·{table}[token])/√2, {width} values of each block"));
        }
        for (blocks, of) in self.kinds() {
            let which = if blocks.len() == self.layers() {
                "every block".to_owned()
            } else {
                format!("{} {}", if blocks.len() == 1 { "block" } else { "blocks" }, ranges(&blocks))
            };
            line(format!("{which}:"));
            self.block_formulas(of).into_iter().for_each(|formula| line(format!("  {formula}")));
        }
        let logits =
            format!("{}{} {}", times(self.logit_scale), self.head_text(), self.norm_text("x", Some(&names.final_norm)));
        line(match self.logit_cap {
            Some(cap) => format!("logits = {}·tanh({logits}/{})", cap.0, cap.0),
            None => format!("logits = {logits}"),
        });
        text
    }

    /// The blocks that are alike, each with the first of them.
    fn kinds(&self) -> Vec<(Vec<usize>, usize)> {
        let mut kinds: Vec<(Vec<usize>, usize)> = Vec::new();
        for layer in 0..self.layers() {
            match kinds.iter_mut().find(|(_, first)| self.blocks[*first] == self.blocks[layer]) {
                Some((blocks, _)) => blocks.push(layer),
                None => kinds.push((vec![layer], layer)),
            }
        }
        kinds
    }

    fn head_text(&self) -> String {
        let bias = if self.head_bias { "(+ bias) " } else { "" };
        format!("{bias}{}", if self.tied { last(&self.names.embedding) } else { last(&self.names.head) })
    }

    /// A norm of something; itself where there is none.
    fn norm_text(&self, of: &str, name: Option<&str>) -> String {
        let Some(name) = name else { return of.to_owned() };
        let kind = if self.norm.centred { "LayerNorm" } else { "RMS" };
        let gain = match (self.norm_gain, self.gain_plus_one) {
            (false, _) => String::new(),
            (true, true) => format!("·(1 + {})", last(name)),
            (true, false) => format!("·{}", last(name)),
        };
        format!("{kind}({of}){gain}{}", if self.norm_bias { " + bias" } else { "" })
    }

    fn block_formulas(&self, layer: usize) -> Vec<String> {
        let (names, scale) = (&self.names, times(self.residual_scale));
        let mut out = vec![format!("u = {}", self.norm_text("x", names.attention_norm))];
        out.extend(match self.delta_of(layer) {
            Some(delta) => delta_formulas(delta),
            None => self.attention_formulas(layer),
        });
        let add = |of: &str, after: Option<&str>| format!("{scale}{}", self.norm_text(of, after));
        let mixed = add("m", names.after_attention);
        if self.parallel {
            let input = match names.mlp_norm {
                Some(name) => format!("h = {}", self.norm_text("x", Some(name))),
                None => "h = u".to_owned(),
            };
            out.push(input);
            out.extend(self.feed_forward_formulas(layer));
            out.push(format!("x = x + {mixed} + {}", add("f", names.after_mlp)));
        } else {
            out.push(format!("x = x + {mixed}"));
            out.push(format!("h = {}", self.norm_text("x", names.mlp_norm)));
            out.extend(self.feed_forward_formulas(layer));
            out.push(format!("x = x + {}", add("f", names.after_mlp)));
        }
        if self.per_layer.is_some() {
            let ([gate, back], f) = (PerLayerKind::MAPS, function(self.activation));
            let read = self.norm_text(&format!("{back} ({f}({gate} x) ∘ p)"), Some(PerLayerKind::NORM));
            out.push(format!("x = x + {read}"));
        }
        out.extend(names.output_scale.map(|name| format!("x = {name}·x")));
        out
    }

    /// A map, with a sign for its bias.
    fn map_text(&self, layer: usize, path: &str) -> String {
        let bias = self
            .parts(layer)
            .iter()
            .any(|part| matches!(part, Part::Map { name, bias: true, .. } if whole(name) == path));
        format!("{}{}", last(path), if bias { "⁺" } else { "" })
    }

    fn attention_formulas(&self, layer: usize) -> Vec<String> {
        let (names, spec, block) = (&self.names, self.attention_of(layer), self.blocks[layer]);
        let map = |path: &str| self.map_text(layer, path);
        let mut out = match (&self.latent, names.qkv) {
            (Some(latent), _) => self.latent_formulas(layer, latent),
            (None, Qkv::Separate([q, k, v])) => {
                let q = if self.output_gate {
                    format!("q, gate = {} u by head", map(q))
                } else {
                    format!("q = {} u", map(q))
                };
                match (block.lender, block.keys_are_values) {
                    (Some(lender), _) => vec![format!("{q}, k and v of block {lender}")],
                    (None, true) => vec![format!("{q}, k = v = {} u", map(k))],
                    (None, false) => vec![format!("{q}, k = {} u, v = {} u", map(k), map(v))],
                }
            }
            (None, Qkv::Joined(name)) => vec![format!("q, k, v = {} u", map(name))],
            (None, Qkv::ByHead(name)) => vec![format!("q, k, v = {} u by key head", map(name))],
        };
        if let (Some([q, k]), Some(over)) = (names.query_key_norms, self.query_key_norm) {
            let over = if over == QueryKeyNorm::Heads { " of each head" } else { "" };
            out.push(match block.lender {
                Some(_) => format!("q = {}{over}", self.norm_text("q", Some(q))),
                None => format!("q, k = {}, {}{over}", self.norm_text("q", Some(q)), self.norm_text("k", Some(k))),
            });
        }
        if self.value_norm && block.lender.is_none() {
            out.push(format!("v = {} of each head", self.norm_text("v", Some("")).trim_end_matches('·')));
        }
        if let Some(bound) = self.qkv_bound {
            out.push(format!("q, k, v cut at ±{bound}"));
        }
        if let Some([of_q, of_k]) = block.rope {
            let rope = &self.ropes[of_q];
            let pairs = if rope.rotated == Pairs::Neighbours { "neighbours" } else { "halves" };
            let part = match 2 * rope.pairs {
                all if all == spec.head_dim && rope.turning() < rope.pairs => {
                    format!(", the first {} of {} pairs", rope.turning(), rope.pairs)
                }
                all if all == spec.head_dim => String::new(),
                part => format!(", {part} of a head's {} values", spec.head_dim),
            };
            let apart = if of_q == of_k { "" } else { ", of queries times a factor by position" };
            let rotated = if block.lender.is_some() { "q" } else { "q, k" };
            out.push(format!("{rotated} rotated ({pairs}{part}){apart}"));
        }
        let mut scores = format!("{:.4}·q·k", spec.scale);
        if let Some(cap) = spec.cap {
            scores = format!("{}·tanh({scores}/{})", cap.0, cap.0);
        }
        let sinks = names.sinks.map_or_else(String::new, |name| format!(" beside {}", last(name)));
        let seen = spec.window.map_or_else(String::new, |window| format!(" over {window} positions"));
        let attended = format!("softmax({scores}{sinks}){seen} v");
        let gated = if self.output_gate { format!("σ(gate) ∘ {attended}") } else { attended };
        out.push(format!("m = {} ({gated}), {} heads, {} of keys", map(names.o), spec.heads, spec.kv_heads));
        out
    }

    fn latent_formulas(&self, layer: usize, of: &LatentKind) -> Vec<String> {
        let ([q_norm, kv_norm], [q_proj, q_a, kv_a], [q_b, kv_b]) =
            (LatentKind::NORMS, LatentKind::DOWN, LatentKind::UP);
        let map = |path: &str| self.map_text(layer, path);
        let q = match of.queries {
            Some(_) => format!("q = {} {}", map(q_b), self.norm_text(&format!("{} u", map(q_a)), Some(q_norm))),
            None => format!("q = {} u", map(q_proj)),
        };
        vec![
            q,
            format!("c, r = {} u", map(kv_a)),
            format!("k, v = {} {} by head; k = k, r in every head", map(kv_b), self.norm_text("c", Some(kv_norm))),
        ]
    }

    fn feed_forward_formulas(&self, layer: usize) -> Vec<String> {
        let experts = self.experts_of(layer);
        if let Some(of) = experts.filter(|of| !of.beside_mlp) {
            return expert_formulas(of, function(self.activation));
        }
        let map = |path: &str| self.map_text(layer, path);
        let f = function(self.activation);
        let hidden = match self.names.up {
            Up::Plain(name) => format!("{f}({} h)", map(name)),
            Up::Gated([gate, up]) => format!("{f}({} h) ∘ {} h", map(gate), map(up)),
            Up::Joined(name) => format!("{f}(a) ∘ b, a, b = {} h", map(name)),
        };
        let mut out = vec![format!("f = {}({hidden})", map(self.names.down))];
        if let Some(of) = experts {
            let ([behind_mlp, before, behind], [gain, _]) = (ExpertsKind::NORMS, ExpertsKind::ROUTER);
            let norm = |of: &str, name| self.norm_text(of, Some(name));
            out.push(format!("g = {}", norm("f", behind_mlp)));
            out.push(format!("r = {}/√{}, h = {}", norm("x", gain), self.hidden, norm("x", before)));
            out.extend(expert_formulas(of, f));
            out.push(format!("f = g + {}", norm("f", behind)));
        }
        out
    }
}

fn delta_formulas(of: &DeltaKind) -> Vec<String> {
    let [taps, bias, rate, norm, o] = DeltaKind::NAMES;
    let taps = taps.trim_end_matches(".weight");
    let inputs = match of.inputs {
        DeltaMaps::ByHead([qkvz, ba]) => {
            format!("q, k, v, z = {} u by head, b, a = {} u by head", last(qkvz), last(ba))
        }
        DeltaMaps::Columns([qkv, z, b, a]) => {
            format!("q, k, v = {} u, z = {} u, b = {} u, a = {} u", last(qkv), last(z), last(b), last(a))
        }
    };
    vec![
        inputs,
        format!("q, k, v = {}({}(q, k, v)), {} taps a channel", function(of.activation), last(taps), of.taps),
        format!("q, k = q/|q|/√{}, k/|k|", of.spec.key_dim),
        format!("β = σ(b), g = −exp({})·softplus(a + {})", last(rate), last(bias)),
        "S' = e^g S, S = S' + β k (v − S'ᵀk)ᵀ, s = Sᵀq".to_owned(),
        format!("m = {} (silu(z) ∘ RMS(s)·{} of each head)", last(o), last(norm)),
    ]
}

fn expert_formulas(of: &ExpertsKind, f: &str) -> Vec<String> {
    let ExpertsKind { number, routing, .. } = of;
    let (k, bias) = (routing.per_row, if of.router_bias { "⁺" } else { "" });
    let chosen = match routing.rule {
        RoutingRule::Softmax => format!("w = softmax(z) of the {k} highest of {number}"),
        RoutingRule::SoftmaxOfChosen => format!("w = softmax of the {k} highest of {number}"),
        RoutingRule::SoftmaxOfClose { tolerance } => {
            format!(
                "w of the {k} highest of {number}, each in the softmax of those left that are within {tolerance} of it"
            )
        }
        RoutingRule::Sigmoid { renormalised, groups, best_groups } => {
            let corrected = of.correction.map_or_else(String::new, |name| format!(" + {}", last(name)));
            let among = if groups == best_groups {
                String::new()
            } else {
                format!(" in the best {best_groups} of {groups} groups")
            };
            let divided = if renormalised { " over their sum" } else { "" };
            format!("w = σ(z){divided} of the {k} highest σ(z){corrected} of {number}{among}")
        }
    };
    let scale = times(routing.scale);
    // beside a feed-forward layer for all rows, the router has an input of its own
    let (read, factor) = match of.beside_mlp {
        true => ("r", format!("{}_j·", last(ExpertsKind::FACTORS))),
        false => ("h", String::new()),
    };
    let (gate, up, down) = match of.stored {
        StoredExperts::Each([gate, up, down]) => (format!("{gate}_j h"), format!("{up}_j h"), format!("{down}_j")),
        StoredExperts::Stacked { names: [gate_up, down], order } => {
            let bias = if order == StackOrder::Inputs { "⁺" } else { "" };
            (format!("a of a, b = {gate_up}[j]{bias} h"), "b".to_owned(), format!("{down}[j]{bias}"))
        }
    };
    let hidden = match of.clamp {
        None => format!("{f}({gate}) ∘ {up}"),
        Some(clamp) => {
            format!(
                "c σ({} c) ∘ (cut(b, ±{}) + 1), c = min(a, {}), {}",
                clamp.alpha,
                clamp.limit,
                clamp.limit,
                gate.trim_start_matches("a of ")
            )
        }
    };
    let mut out = vec![
        format!("z = {}{bias} {read}, {chosen}", last(of.router)),
        format!("f = {scale}Σ_j {factor}w_j·{down}({hidden})"),
    ];
    if let Some(shared) = of.shared {
        let [gate, up, down] = shared.maps.map(|path| path.trim_start_matches("mlp."));
        let open = shared.gate.map_or_else(String::new, |name| format!("σ({} h)·", last(name)));
        out.push(format!("f = f + {open}{down}({f}({gate} h) ∘ {up} h)"));
    }
    out
}
