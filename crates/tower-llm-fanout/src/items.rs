//! A list whose items are the branches.

use std::vec;

use crate::{Branches, Split};

/// Sends each item of a list in a branch of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Items;

/// The items of one list.
#[derive(Debug)]
pub struct ItemsOf<Req>(vec::IntoIter<Req>);

impl<Req> Split<Vec<Req>> for Items {
    type Branch = Req;
    type Branches = ItemsOf<Req>;

    fn split(&self, items: Vec<Req>) -> ItemsOf<Req> {
        ItemsOf(items.into_iter())
    }
}

impl<Req> Branches for ItemsOf<Req> {
    type Branch = Req;

    fn next(&mut self) -> Option<Req> {
        self.0.next()
    }

    fn left(&self) -> usize {
        self.0.len()
    }

    fn repeats(&self) -> bool {
        false
    }
}
