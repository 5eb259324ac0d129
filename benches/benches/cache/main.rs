//! What a cache costs: a hit, a miss, a shared call, its memory; and how many hits it makes of real traffic.
//!
//! One file a question. Peers stand beside us where they can do the same; `benches/README.md` says what they cannot.

mod calls;
mod flight;
mod hit;
mod memory;
mod miss;
mod peers;
mod second;
mod trace;

use benches::Suite;

fn main() {
    let mut suite = Suite::new("cache");
    hit::measure(&mut suite);
    second::measure(&mut suite);
    miss::measure(&mut suite);
    flight::measure(&mut suite);
    memory::measure(&mut suite);
    trace::measure(&mut suite);
}
