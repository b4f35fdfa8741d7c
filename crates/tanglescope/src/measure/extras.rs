//! What is measured beside pairs of the best and the worst response.
use tanglescope_checkpoint::text_hash;
use tanglescope_gram::Group;
use tanglescope_objectives::GroupObjective;

/// What is measured beside pairs of the best and the worst response.
#[derive(Clone, Debug, Default)]
pub struct Extras {
    /// Every pair of a better and a worse response of a group is a pair.
    pub all_pairs: bool,
    /// Losses on groups.
    pub objectives: Vec<GroupObjective>,
    /// Whether the Gram of the mean gradients is wanted.
    pub mean_gradients: bool,
    /// Texts whose change under the pairs' steps is predicted.
    pub probes: Vec<Probe>,
}

/// A text beside the pairs.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// Number of its row in its file.
    pub row: u64,
    /// The row's own `id`.
    pub id: Option<String>,
    /// Its tokens, as a group of one.
    pub group: Group,
}

impl Extras {
    /// SHA-256 of the probes' rows and tokens; `None` without probes.
    pub fn probes_identity(&self) -> Option<String> {
        let of = |probe: &Probe| format!("{} {:?} {:?}", probe.row, probe.group.prompt, probe.group.responses);
        (!self.probes.is_empty()).then(|| text_hash(&self.probes.iter().map(of).collect::<Vec<_>>().join("\n")))
    }
}
