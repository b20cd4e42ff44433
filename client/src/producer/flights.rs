//! The batches of one partition that are under way: what may be sent, sent again, and under which
//! sequence, so that whatever gets lost nothing is appended twice or out of order.
//!
//! ```text
//!            push                  all answered, no hole
//!   open ───────────► open        ┌──────────────────────────────► open (all sent again)
//!    │ retry, unknown, refused    │
//!    └───────────────► holding ───┤ hole, some in doubt ──► probe: send those again, as they are
//!                       ▲         │                           │
//!                       └─────────┼───────────────────────────┘
//!                                 └ hole, none in doubt ──► renew: next epoch, sequences from 0
//! ```
//!
//! A *hole* is the place of a batch that failed for good: the server refuses what follows it, so
//! the rest needs a new epoch. A batch *in doubt* may have been appended already and must not be
//! given a new identity, under which the server could not recognise it.
//!
//! A server that does not know a producer takes any sequence as its first. Until it has answered
//! one batch, therefore, there is only one under way.

use std::collections::VecDeque;

use trilog_model::batch::{ProducerState, sequence_after};

/// Unanswered batches per partition; the server remembers as many.
pub(super) const MAX_FLIGHTS: u64 = 5;

/// Names one flight within its lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// Whether a batch that failed may have been appended all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Doubt {
    None,
    MayBeAppended,
}

#[derive(Debug)]
struct Flight<B> {
    ticket: Ticket,
    sequence: i32,
    count: i32,
    /// Waits for an answer.
    sent: bool,
    /// An attempt may have been appended, and nothing has cleared that up yet.
    doubted: bool,
    /// Some attempt's outcome was once unknown; a copy may still be on its way to a node.
    tainted: bool,
    batch: B,
}

/// What to do now that every answer is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing is being held.
    None,
    /// Send these again, in this order, as they are.
    Resend(Vec<Ticket>),
    /// Take a new identity with [`Flights::renew`], then ask again.
    Renew,
}

#[derive(Debug)]
pub(super) struct Flights<B> {
    producer_id: i64,
    epoch: i16,
    next_sequence: i32,
    next_ticket: u64,
    /// The server knows the producer id in this partition.
    established: bool,
    queue: VecDeque<Flight<B>>,
    holding: bool,
    /// There is a hole; in doubt, if the batch that left it may yet be appended by a copy that is
    /// still on its way.
    hole: Option<Doubt>,
    /// The producer id itself is of no more use.
    fenced: bool,
}

impl<B> Flights<B> {
    pub(super) fn new(producer_id: i64, epoch: i16) -> Self {
        Self {
            producer_id,
            epoch,
            next_sequence: 0,
            next_ticket: 0,
            established: false,
            queue: VecDeque::new(),
            holding: false,
            hole: None,
            fenced: false,
        }
    }

    /// Whether another batch may be pushed.
    pub(super) fn has_room(&self) -> bool {
        // Counted from the oldest, answered ones included: the server remembers the latest few, and
        // the oldest must still be among them.
        let oldest = self.queue.front().map(|flight| flight.ticket.0);
        let span = oldest.map_or(0, |oldest| self.next_ticket - oldest);
        !self.holding && span < self.window()
    }

    const fn window(&self) -> u64 {
        if self.established { MAX_FLIGHTS } else { 1 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// What the next batch to be pushed is stamped with.
    pub(super) const fn next_stamp(&self) -> ProducerState {
        ProducerState {
            id: self.producer_id,
            epoch: self.epoch,
            sequence: self.next_sequence,
        }
    }

    /// Takes a batch of `count` records, stamped as [`Self::next_stamp`] said, as sent.
    pub(super) fn push(&mut self, batch: B, count: i32) -> Ticket {
        debug_assert!(self.has_room());
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        self.queue.push_back(Flight {
            ticket,
            sequence: self.next_sequence,
            count,
            sent: true,
            doubted: false,
            tainted: false,
            batch,
        });
        self.next_sequence = sequence_after(self.next_sequence, count);
        ticket
    }

    pub(super) fn batch(&self, ticket: Ticket) -> Option<&B> {
        let place = self.place(ticket)?;
        self.queue.get(place).map(|flight| &flight.batch)
    }

    /// The batch was appended.
    pub(super) fn acknowledged(&mut self, ticket: Ticket) -> Option<B> {
        let place = self.place(ticket)?;
        self.established = true;
        self.queue.remove(place).map(|flight| flight.batch)
    }

    /// This attempt came to nothing: for certain, or as far as anybody knows.
    pub(super) fn attempt_failed(&mut self, ticket: Ticket, doubt: Doubt) {
        self.holding = true;
        if let Some(place) = self.place(ticket) {
            let flight = &mut self.queue[place];
            flight.sent = false;
            if doubt == Doubt::MayBeAppended {
                flight.doubted = true;
                flight.tainted = true;
            }
        }
    }

    /// The server misses what should come before this batch, which it therefore did not append.
    /// Gives the batch back if it has failed for good.
    pub(super) fn out_of_order(&mut self, ticket: Ticket) -> Option<(B, Doubt)> {
        self.holding = true;
        let place = self.place(ticket)?;
        let hole = self.hole;
        let behind_doubt = self.queue.range(..place).any(|flight| flight.doubted);
        let flight = &mut self.queue[place];
        flight.sent = false;
        if place > 0 && (hole.is_none() || behind_doubt) {
            // An earlier batch is still to be sent again, or asked about; this one follows it.
            return None;
        }
        if flight.tainted && hole != Some(Doubt::None) {
            // A copy of what is missing, and behind it one of this batch, may still arrive.
            return self.failed(ticket);
        }
        flight.doubted = false;
        self.hole = self.hole.max(Some(Doubt::None));
        None
    }

    /// Another producer has taken over the identity; only a new one helps.
    pub(super) fn fenced(&mut self, ticket: Ticket) -> Option<(B, Doubt)> {
        self.fenced = true;
        self.failed(ticket)
    }

    /// The batch will not be sent again. Gives it back, with what is known of its fate.
    pub(super) fn failed(&mut self, ticket: Ticket) -> Option<(B, Doubt)> {
        let place = self.place(ticket)?;
        let flight = self.queue.remove(place)?;
        let doubt = if flight.doubted {
            Doubt::MayBeAppended
        } else {
            Doubt::None
        };
        self.holding = true;
        self.hole = self.hole.max(Some(doubt));
        Some((flight.batch, doubt))
    }

    /// Flights whose batch is `past`, and which nobody is about to answer.
    pub(super) fn expired(&self, past: impl Fn(&B) -> bool) -> Vec<Ticket> {
        let waiting = self.queue.iter().filter(|flight| !flight.sent);
        waiting
            .filter(|flight| past(&flight.batch))
            .map(|flight| flight.ticket)
            .collect()
    }

    /// Whether something is held back and no answer is outstanding, so that a step can be taken.
    pub(super) fn is_settled(&self) -> bool {
        self.holding && self.queue.iter().all(|flight| !flight.sent)
    }

    /// Decides how to go on; marks what is to be sent again as sent.
    pub(super) fn step(&mut self) -> Step {
        if !self.is_settled() {
            return Step::None;
        }
        let in_doubt = self.queue.iter().any(|flight| flight.doubted);
        if self.hole.is_some() && !in_doubt {
            return Step::Renew;
        }
        let window = if self.established { usize::MAX } else { 1 };
        let probing = self.hole.is_some();
        self.holding = probing || self.queue.len() > window;
        let again = self
            .queue
            .iter_mut()
            .filter(|flight| !probing || flight.doubted)
            .take(window)
            .map(|flight| {
                flight.sent = true;
                flight.ticket
            });
        Step::Resend(again.collect())
    }

    /// Whether [`Self::renew`] needs a new producer id, the epochs of this one being used up.
    pub(super) const fn needs_producer_id(&self) -> bool {
        self.fenced || self.epoch == i16::MAX
    }

    /// Goes on under the next epoch, or under a new id: sequences begin at zero. Gives the stamp
    /// of every batch still held, each of which must be stamped anew by `restamp`.
    pub(super) fn renew(
        &mut self,
        new_id: Option<(i64, i16)>,
        mut restamp: impl FnMut(&mut B, ProducerState),
    ) {
        debug_assert!(self.queue.iter().all(|flight| !flight.doubted));
        self.established &= new_id.is_none();
        (self.producer_id, self.epoch) =
            new_id.unwrap_or((self.producer_id, self.epoch.saturating_add(1)));
        self.fenced = false;
        self.hole = None;
        self.next_sequence = 0;
        for flight in &mut self.queue {
            flight.sequence = self.next_sequence;
            self.next_sequence = sequence_after(self.next_sequence, flight.count);
            let stamp = ProducerState {
                id: self.producer_id,
                epoch: self.epoch,
                sequence: flight.sequence,
            };
            restamp(&mut flight.batch, stamp);
        }
    }

    fn place(&self, ticket: Ticket) -> Option<usize> {
        self.queue.iter().position(|flight| flight.ticket == ticket)
    }
}

#[cfg(test)]
mod tests;
