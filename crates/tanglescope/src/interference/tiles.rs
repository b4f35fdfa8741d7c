//! The tables of products between pairs: a part for every two windows.
use crate::error::{Error, Result};
use crate::measure::Item;
use crate::options::Destination;
use std::collections::BTreeMap;
use tanglescope_kernels::as_index;
use tanglescope_objectives::PairGram;
use tanglescope_records::tables::interference::{
    Couple, LayerCouple, ResponseCouple, by_layer, by_response, read, table,
};
use tanglescope_records::{Table, tables};

/// The tables that products go into.
pub struct Tiles {
    couples: Table,
    layers: Option<Table>,
    responses: Option<Table>,
}

/// What two windows have in common: products of the responses' gradients `[rows of a, rows of b]` by block.
pub struct Found<'a> {
    /// The windows' rows of the data.
    pub items: [&'a [Item]; 2],
    /// Of each window, the first row of each item's responses in its gradients, and the number of rows.
    pub firsts: [Vec<usize>; 2],
    /// Whether both are one window, of which each couple is written once.
    pub same: bool,
    /// Products by block.
    pub by_layer: BTreeMap<Option<usize>, Vec<f64>>,
    /// Whether those are `[rows of b, rows of a]`.
    pub transposed: bool,
    /// The Gram of each pair of a window with itself, as pairs.parquet has it.
    pub diagonal: &'a [PairGram],
}

impl Tiles {
    /// Of two data sets where `against`; by block and by response where those are wanted.
    pub fn create(to: &Destination, against: bool, layers: bool, responses: bool) -> Result<Self> {
        let names = match against {
            false => [tables::INTERFERENCE, tables::INTERFERENCE_LAYERS, tables::INTERFERENCE_RESPONSES],
            true => [tables::AGAINST, tables::AGAINST_LAYERS, tables::AGAINST_RESPONSES],
        };
        let table = |wanted: bool, name: &str| wanted.then(|| Table::create(&to.out, name)).transpose();
        Ok(Self {
            couples: Table::create(&to.out, names[0])?,
            layers: table(layers, names[1])?,
            responses: table(responses, names[2])?,
        })
    }

    /// Reads a part.
    pub fn read(&self, part: usize) -> Result<Vec<Couple>> {
        Ok(read(&self.couples.read(part)?)?)
    }

    /// Whether a part is there.
    pub fn has(&self, part: usize) -> bool {
        [Some(&self.couples), self.layers.as_ref(), self.responses.as_ref()].into_iter().flatten().all(|t| t.has(part))
    }

    /// Writes a part; interference.parquet, by which it is found, comes last.
    pub fn write(&self, part: usize, found: &Found<'_>) -> Result<()> {
        let total = found.total();
        if let Some((a, _)) = found.couples().find(|(a, b)| !found.inner(&total, *a, *b).iter().all(|x| x.is_finite()))
        {
            return Err(Error::overflow(found.items[0][a].row, "an inner product with another pair"));
        }
        if let Some(layers) = &self.layers {
            let rows: Vec<LayerCouple> = found
                .by_layer
                .iter()
                .flat_map(|(layer, products)| {
                    let layer = layer.map(as_index);
                    found.couples().map(move |(a, b)| LayerCouple { layer, couple: found.couple(products, a, b) })
                })
                .collect();
            layers.write(part, by_layer(&rows))?;
        }
        if let Some(responses) = &self.responses {
            responses.write(part, by_response(&found.responses(&total)))?;
        }
        let couple = |(a, b)| match found.same && a == b {
            false => found.couple(&total, a, b),
            true => {
                let PairGram { ww, wl, ll } = found.diagonal[a];
                Couple { inner: [ww, wl, wl, ll], ..found.couple(&total, a, b) }
            }
        };
        Ok(self.couples.write(part, table(&found.couples().map(couple).collect::<Vec<_>>()))?)
    }
}

/// The first row of each item's responses among those of all, and the number of all.
pub fn firsts(items: &[Item]) -> Vec<usize> {
    let mut firsts = vec![0];
    items.iter().for_each(|item| firsts.push(firsts[firsts.len() - 1] + item.group.responses.len()));
    firsts
}

impl Found<'_> {
    fn total(&self) -> Vec<f64> {
        let mut layers = self.by_layer.values();
        let mut total = layers.next().cloned().unwrap_or_default();
        layers.for_each(|of| total.iter_mut().zip(of).for_each(|(sum, x)| *sum += x));
        total
    }

    /// Every two rows of the data, by their places in the windows.
    fn couples(&self) -> impl Iterator<Item = (usize, usize)> {
        let (same, [a, b]) = (self.same, self.items.map(<[Item]>::len));
        (0..a).flat_map(move |i| (if same { i } else { 0 }..b).map(move |j| (i, j)))
    }

    /// The product of two rows of gradients.
    fn at(&self, products: &[f64], a: usize, b: usize) -> f64 {
        let rows = |window: usize| self.firsts[window][self.items[window].len()];
        match self.transposed {
            false => products[a * rows(1) + b],
            true => products[b * rows(0) + a],
        }
    }

    fn inner(&self, products: &[f64], a: usize, b: usize) -> [f64; 4] {
        let (first_a, first_b) = (self.firsts[0][a], self.firsts[1][b]);
        // the best response is an item's first branch, the worst its second
        [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(i, j)| self.at(products, first_a + i, first_b + j))
    }

    fn couple(&self, products: &[f64], a: usize, b: usize) -> Couple {
        let [row_a, row_b] = [self.items[0][a].row, self.items[1][b].row];
        Couple { a: row_a, b: row_b, inner: self.inner(products, a, b) }
    }

    fn responses(&self, products: &[f64]) -> Vec<ResponseCouple> {
        let mut out = Vec::new();
        for (a, b) in self.couples() {
            let (of_a, of_b) = (&self.items[0][a], &self.items[1][b]);
            let (first_a, first_b) = (self.firsts[0][a], self.firsts[1][b]);
            for (i, &response_a) in of_a.responses.iter().enumerate() {
                for (j, &response_b) in of_b.responses.iter().enumerate() {
                    out.push(ResponseCouple {
                        a: (of_a.row, as_index(response_a)),
                        b: (of_b.row, as_index(response_b)),
                        inner: self.at(products, first_a + i, first_b + j),
                    });
                }
            }
        }
        out
    }
}
