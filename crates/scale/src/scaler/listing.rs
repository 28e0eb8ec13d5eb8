//! What a complete list of the provider proves.
//!
//! A server that is listed existed. One that is not may be too new, or have
//! slipped from one page to another while they were read: absence counts only
//! in lists asked for [`Limits::lag_ms`](crate::Limits) after the last moment
//! at which it could have been otherwise, and in two of them in a row; and a
//! node that answers is not missing.

use super::{PAUSE_MS, Scaler, pause_ms};
use crate::{
    event::{Command, Decision, Server},
    machine::{Cause, MachineId, Owner, State},
    time::{MINUTE_MS, SECOND_MS, Time},
};
use std::collections::BTreeMap;

/// A list that has not come after so long does not come any more.
const LIST_MAX_MS: u64 = 10 * MINUTE_MS;
/// Servers on a page, as providers have it, and what a page takes of a rate limit: 250 requests a minute, of which
/// lists may use a sixth.
const PAGE: usize = 200;
const PAGE_MS: u64 = 1_500;
/// A request that ended unclear is sent again once a list asked for so long after it does not show a server.
const QUICK_MS: u64 = 15 * SECOND_MS;
/// Never more requests in doubt for one machine.
const ATTEMPTS_MAX: usize = 3;
/// That many machines missing at once are bad luck, more are suspicious where they are over three in ten.
const MISSING_MAX: usize = 2;

impl Scaler {
    /// Wants a list no later than then.
    pub(super) fn want_list(&mut self, at: Time) {
        self.lists.wanted = Some(self.lists.wanted.map_or(at, |wanted| wanted.min(at)));
    }

    /// When the next list is due.
    pub(super) fn list_due(&self) -> Option<Time> {
        if let Some(asked) = self.lists.under_way {
            return Some(asked.plus(LIST_MAX_MS));
        }
        let pages = self.lists.servers.div_ceil(PAGE) as u64;
        let gap = self.limits.list_gap_ms.max(pages * PAGE_MS);
        let pause = if self.lists.failures == 0 { 0 } else { pause_ms(self.lists.failures) };
        let wanted = self.lists.wanted.unwrap_or(Time(u64::MAX)).min(self.lists.last.plus(self.limits.list_every_ms));
        Some(wanted.max(self.lists.last.plus(gap.max(pause))))
    }

    pub(super) fn list_failed(&mut self) {
        if self.lists.under_way.take().is_some() {
            self.lists.failures += 1;
            self.want_list(self.now);
        }
    }

    pub(super) fn listed(&mut self, asked: Time, servers: &[Server]) {
        if self.lists.under_way.take().is_none() {
            return;
        }
        let lag = self.limits.lag_ms;
        self.lists.failures = 0;
        self.lists.servers = servers.len();
        let mut present: Vec<MachineId> = Vec::with_capacity(servers.len());
        let mut unplaced: BTreeMap<MachineId, Vec<&Server>> = BTreeMap::new();
        let mut orphans = BTreeMap::new();
        for server in servers {
            if let Some(&id) = self.by_server.get(&server.id) {
                present.push(id);
                continue;
            }
            match self.names.parse(&server.name) {
                Owner::Machine(id) if self.machines.contains_key(&id) => unplaced.entry(id).or_default().push(server),
                Owner::Machine(_) | Owner::Fleet => drop(orphans.insert(server.id, server.name.clone())),
                Owner::Stranger => {}
            }
        }
        for (id, name) in &orphans {
            if !self.lists.orphans.contains_key(id) {
                self.out.decisions.push(Decision::Orphan { server: *id, name: name.clone() });
            }
        }
        self.lists.orphans = orphans;
        for (id, servers) in unplaced {
            self.unplaced(id, servers, &mut present);
        }
        present.sort_unstable();
        let (mut changed, mut missing, mut nodes, mut doubtful) = (Vec::new(), Vec::new(), 0, false);
        for machine in self.machines.values() {
            let is_present = machine.server.is_some() && present.binary_search(&machine.id).is_ok();
            nodes += usize::from(machine.server.is_some() && machine.state != State::Gone);
            doubtful |= machine.state == State::Deleting && machine.deleted.is_some()
                || machine.state != State::Gone && machine.attempts.iter().any(|attempt| attempt.ended.is_some());
            let is_news = match machine.state {
                State::Gone => is_present && machine.since.plus(lag) < asked,
                _ => !is_present || machine.absent_since.is_some() || !machine.attempts.is_empty(),
            };
            let is_deleting = machine.state == State::Deleting && machine.server.is_some();
            if is_news || is_deleting {
                changed.push((machine.id, is_present));
            }
        }
        for (id, is_present) in changed {
            if self.compare(id, is_present, asked) {
                missing.push(id);
            }
        }
        if doubtful {
            self.want_list(self.now.plus(PAUSE_MS));
        }
        self.missing(&missing, nodes);
    }

    /// One row against a list. True where a machine in use is missing.
    fn compare(&mut self, id: MachineId, is_present: bool, asked: Time) -> bool {
        let (now, lag) = (self.now, self.limits.lag_ms);
        let machine = &self.machines[&id];
        let is_proof = |since: Time| since.plus(lag) < asked;
        let mut has_proven = false;
        if machine.attempts.iter().any(|attempt| attempt.ended.is_some_and(is_proof)) {
            has_proven = self.change(id, |machine| {
                let before = machine.attempts.len();
                machine.attempts.retain(|attempt| !(attempt.is_missed && attempt.ended.is_some_and(is_proof)));
                for attempt in &mut machine.attempts {
                    attempt.is_missed = attempt.ended.is_some_and(is_proof);
                }
                machine.attempts.len() < before
            });
        }
        let machine = &self.machines[&id];
        match machine.state {
            State::Gone if is_present => {
                self.change(id, |machine| machine.deleted = None);
                self.become_(id, State::Deleting, Some(Cause::Resurrected));
                false
            }
            State::Creating if machine.server.is_none() => {
                self.unclear(id, has_proven, asked);
                false
            }
            State::Deleting => {
                match (is_present, machine.deleted, machine.absent_since) {
                    (true, deleted, absent) => {
                        // It was accepted, and was not done.
                        let is_undone = deleted.is_some_and(is_proof);
                        if is_undone || absent.is_some() {
                            self.change(id, |machine| {
                                machine.absent_since = None;
                                if is_undone {
                                    machine.deleted = None;
                                    machine.not_before = now;
                                }
                            });
                        }
                    }
                    // Nobody asked for it yet, or lists may lag.
                    (false, Some(deleted), None) if !is_proof(deleted) => {}
                    (false, None, None) if !machine.known.is_none_or(is_proof) => {}
                    (false, _, None) => self.change(id, |machine| machine.absent_since = Some(asked)),
                    (false, Some(_), Some(_)) => {
                        let cause = machine.cause;
                        self.become_(id, State::Gone, cause);
                    }
                    (false, None, Some(since)) if is_proof(since) => {
                        let cause = machine.cause;
                        self.become_(id, State::Gone, cause);
                    }
                    (false, None, Some(_)) => {}
                }
                false
            }
            State::Planned | State::Creating | State::Gone => false,
            _ if is_present => {
                if machine.absent_since.is_some() {
                    self.change(id, |machine| machine.absent_since = None);
                }
                false
            }
            _ => match machine.absent_since {
                None if !machine.known.is_none_or(is_proof) => false,
                // A node that answers is there, whatever lists say.
                Some(_) if machine.is_node() && machine.silent_since.is_none() => {
                    self.out.commands.push(Command::Confirm { machine: id });
                    false
                }
                None => {
                    self.change(id, |machine| machine.absent_since = Some(asked));
                    self.want_list(now.plus(lag));
                    false
                }
                Some(since) => is_proof(since),
            },
        }
    }

    /// A machine that was asked for, and that no list shows.
    fn unclear(&mut self, id: MachineId, has_proven: bool, asked: Time) {
        let now = self.now;
        let machine = &self.machines[&id];
        let attempts = &machine.attempts;
        if attempts.is_empty() && has_proven {
            self.change(id, |machine| {
                machine.state = State::Planned;
                machine.since = now;
                machine.failures += 1;
                machine.not_before = now;
            });
            let pool = usize::from(self.machines[&id].pool.0);
            if self.machines[&id].instances.is_empty() && self.is_superfluous(pool, id) {
                return self.unplan(id);
            }
            self.out.decisions.push(Decision::Again { machine: id });
        } else if attempts.len() < ATTEMPTS_MAX
            && attempts.iter().all(|attempt| attempt.ended.is_some_and(|ended| ended.plus(QUICK_MS) < asked))
        {
            self.send_again(id);
        }
    }

    /// Servers with a machine's name that are not the one on its row: the oldest is taken for it where it has none.
    fn unplaced(&mut self, id: MachineId, mut servers: Vec<&Server>, present: &mut Vec<MachineId>) {
        servers.sort_by_key(|server| (server.created, server.id));
        for server in servers {
            let machine = &self.machines[&id];
            let is_wanted = machine.server.is_none() && matches!(machine.state, State::Creating | State::Planned);
            let ended = machine.attempts.iter().position(|attempt| attempt.ended.is_some());
            let gone = machine.state == State::Gone;
            if is_wanted {
                self.out.decisions.push(Decision::Adopt { machine: id, server: server.id });
                self.change(id, |machine| {
                    machine.server = Some(server.id);
                    ended.map(|place| machine.attempts.remove(place));
                });
                self.boots(id, server.id);
                present.push(id);
                continue;
            }
            let (name, pool, asked) = (machine.name.clone(), machine.pool, machine.asked);
            let cause = if gone { Cause::Resurrected } else { Cause::Duplicate };
            present.push(self.condemn(name, pool, server.id, asked, cause));
            if let Some(place) = ended {
                self.change(id, |machine| machine.attempts.remove(place));
            }
        }
    }

    /// Machines in use that two lists lack.
    fn missing(&mut self, missing: &[MachineId], nodes: usize) {
        if missing.len() > MISSING_MAX && missing.len() * 10 > nodes * 3 && self.now > self.believed_until {
            self.out.decisions.push(Decision::Suspect { missing: missing.len(), of: nodes });
            return self.freeze();
        }
        for &id in missing {
            for instance in self.machines[&id].instances.clone() {
                self.displace(instance);
            }
            self.become_(id, State::Gone, Some(Cause::Lost));
        }
    }
}
