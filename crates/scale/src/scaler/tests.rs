//! Lives of single machines, step by step. What must hold in any life is proven by the simulator.

use super::*;
use crate::{
    event::{CreateAnswer, DeleteAnswer, Server, Why, Wish},
    money::Billing,
    time::HOUR_MS,
};

const POOL: PoolIndex = PoolIndex(0);

/// A scaler whose commands are answered by hand.
struct Table {
    scaler: Scaler,
    now: Time,
    commands: Vec<Command>,
    decisions: Vec<Decision>,
    next: u64,
}

impl Table {
    fn new(change: impl FnOnce(&mut Pool, &mut Limits)) -> Self {
        let mut pool = Pool::new("kernels".parse().unwrap(), 23, Micros(36_000), Billing::DIGITALOCEAN);
        let mut limits = Limits::default();
        change(&mut pool, &mut limits);
        let names = Names { fleet: "acme".parse().unwrap(), token: "t".into() };
        let now = Time(1_772_323_200_000);
        let scaler = Scaler::new(names, limits, vec![pool], now);
        Self { scaler, now, commands: vec![], decisions: vec![], next: 0 }
    }

    fn tell(&mut self, event: Event) {
        let mut out = Output::default();
        self.scaler.step(event, self.now, &mut out);
        self.commands.append(&mut out.commands);
        self.decisions.append(&mut out.decisions);
    }

    fn pass(&mut self, span_ms: u64) {
        let end = self.now.plus(span_ms);
        while self.scaler.next_wake() <= end {
            self.now = self.scaler.next_wake().max(self.now.plus(1));
            self.tell(Event::Tick);
        }
        self.now = end;
    }

    fn start(&mut self, count: u64) -> Vec<InstanceId> {
        let ids: Vec<InstanceId> = (self.next..self.next + count).map(InstanceId).collect();
        self.next += count;
        for &instance in &ids {
            self.tell(Event::Start { instance, pool: POOL, needs: Room::slots(1), is_movable: true });
        }
        ids
    }

    /// Takes the commands that came since, lists apart: they are answered with what `servers` says, if anything.
    fn take(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.commands).into_iter().filter(|command| *command != Command::List).collect()
    }

    fn list(&mut self, servers: &[(u64, u64)]) {
        let asked = self.now;
        let servers = servers.iter().map(|(id, machine)| Server {
            id: ServerId(*id),
            name: self.scaler.names.of(&"kernels".parse().unwrap(), MachineId(*machine)),
            created: Time(*id),
        });
        let servers = servers.collect();
        self.scaler.lists.under_way = Some(asked);
        self.tell(Event::Listed { asked, servers });
    }

    fn state(&self, machine: u64) -> State {
        self.scaler.machine(MachineId(machine)).map_or(State::Gone, |machine| machine.state)
    }

    /// Brings a machine that was asked for to being ready, and starts what waits for it.
    fn ready(&mut self, machine: u64, server: u64) {
        let (id, server) = (MachineId(machine), ServerId(server));
        self.tell(Event::Created { machine: id, answer: CreateAnswer::Made(server) });
        self.tell(Event::Joined { machine: id, server });
        self.run_all();
    }

    fn run_all(&mut self) {
        for command in self.take() {
            match command {
                Command::Start { instance, machine } => {
                    self.tell(Event::Started { instance, machine, is_running: true });
                }
                Command::Stop { instance, machine } => {
                    self.tell(Event::Stopped { instance, machine, is_stopped: true });
                }
                _ => {}
            }
        }
    }
}

#[test]
fn the_24th_buys_one_and_the_next_22_join_it() {
    let mut table = Table::new(|_, _| {});
    table.start(23);
    assert_eq!(table.take(), [Command::Create { machine: MachineId(0) }]);
    table.ready(0, 100);
    let late = table.start(1);
    assert_eq!(table.take(), [Command::Create { machine: MachineId(1) }]);
    assert!(
        matches!(table.decisions.last(), Some(Decision::Buy { why: Why::Instance(id), free_slots: 0, .. }) if *id == late[0])
    );
    table.start(22);
    assert_eq!(table.take(), []);
    let row = table.scaler.instance(late[0]).unwrap();
    assert_eq!((row.doing, row.machine), (Doing::Reserved, Some(MachineId(1))));
    table.start(1);
    assert_eq!(table.take(), [Command::Create { machine: MachineId(2) }]);
    table.ready(1, 101);
    assert_eq!(table.scaler.instance(late[0]).unwrap().doing, Doing::Running);
}

/// A place that falls free on a machine that runs is taken by one that waits for a machine that boots.
#[test]
fn a_freed_place_is_taken_at_once() {
    let mut table = Table::new(|_, _| {});
    let ids = table.start(24);
    table.take();
    table.ready(0, 100);
    assert_eq!(table.scaler.instance(ids[23]).unwrap().doing, Doing::Reserved);
    table.tell(Event::Stop { instance: ids[3] });
    table.run_all();
    let row = table.scaler.instance(ids[23]).unwrap();
    assert_eq!((row.doing, row.machine), (Doing::Starting, Some(MachineId(0))));
}

#[test]
fn caps_count_what_may_exist() {
    let mut table = Table::new(|pool, _| pool.caps.machines = Some(2));
    let ids = table.start(24);
    assert_eq!(table.take().len(), 2);
    table.start(23);
    assert_eq!(table.take(), []);
    assert!(matches!(table.scaler.pool(POOL).unwrap().hold, Some(Hold::Machines { most: 2, fleet: false })));
    // One request ends unclear. It may have made a machine, so no other is asked for in its place.
    table.ready(0, 100);
    table.tell(Event::Created { machine: MachineId(1), answer: CreateAnswer::Unclear });
    table.pass(MINUTE_MS);
    table.list(&[(100, 0)]);
    assert_eq!(table.take(), []);
    // Two lists late enough prove that it made none; then the same intent is tried again.
    table.pass(2 * MINUTE_MS);
    table.list(&[(100, 0)]);
    assert_eq!((table.take(), table.state(1)), (vec![], State::Creating));
    table.pass(MINUTE_MS);
    table.list(&[(100, 0)]);
    table.pass(MINUTE_MS);
    assert_eq!(table.take(), [Command::Create { machine: MachineId(1) }]);
    table.ready(1, 101);
    assert_eq!(table.scaler.instance(ids[23]).unwrap().doing, Doing::Running);
}

#[test]
fn an_unclear_request_that_made_one_is_found_by_its_name() {
    let mut table = Table::new(|_, _| {});
    table.start(1);
    table.take();
    table.tell(Event::Created { machine: MachineId(0), answer: CreateAnswer::Unclear });
    table.pass(20 * SECOND_MS);
    table.list(&[(100, 0)]);
    let join = Command::Join { machine: MachineId(0), server: ServerId(100) };
    assert_eq!((table.take(), table.state(0)), (vec![join], State::Booting));
    assert_eq!(table.scaler.possible(), 1);
}

/// Lists lag: the request is sent again, and both turn out to have made a machine. The older is kept.
#[test]
fn the_oldest_of_two_is_kept() {
    let mut table = Table::new(|_, _| {});
    table.start(1);
    table.take();
    table.tell(Event::Created { machine: MachineId(0), answer: CreateAnswer::Unclear });
    table.pass(20 * SECOND_MS);
    table.list(&[]);
    assert_eq!(table.take(), [Command::Create { machine: MachineId(0) }]);
    assert_eq!(table.scaler.possible(), 2);
    table.tell(Event::Created { machine: MachineId(0), answer: CreateAnswer::Unclear });
    table.pass(20 * SECOND_MS);
    table.list(&[(102, 0), (101, 0)]);
    assert_eq!(table.scaler.machine(MachineId(0)).unwrap().server, Some(ServerId(101)));
    let commands = table.take();
    assert!(commands.contains(&Command::Join { machine: MachineId(0), server: ServerId(101) }));
    assert!(commands.contains(&Command::Delete { machine: MachineId(1), server: ServerId(102) }), "{commands:?}");
    assert_eq!(table.scaler.machine(MachineId(1)).unwrap().cause, Some(Cause::Duplicate));
    assert_eq!(table.scaler.possible(), 2);
}

#[test]
fn an_idle_machine_is_asked_deleted_and_gone() {
    let mut table = Table::new(|_, _| {});
    let ids = table.start(1);
    table.take();
    table.ready(0, 100);
    table.tell(Event::Stop { instance: ids[0] });
    table.run_all();
    table.pass(9 * MINUTE_MS);
    assert_eq!(table.state(0), State::Ready);
    table.pass(MINUTE_MS);
    assert_eq!((table.take(), table.state(0)), (vec![Command::Confirm { machine: MachineId(0) }], State::Draining));
    table.tell(Event::Confirmed { machine: MachineId(0), running: Some(0) });
    let delete = Command::Delete { machine: MachineId(0), server: ServerId(100) };
    assert_eq!((table.take(), table.state(0)), (vec![delete.clone()], State::Deleting));
    table.tell(Event::Deleted { machine: MachineId(0), answer: DeleteAnswer::Accepted });
    // It counts until lists have it no more.
    table.list(&[]);
    assert_eq!(table.scaler.possible(), 1);
    table.pass(3 * MINUTE_MS);
    table.list(&[]);
    assert_eq!(table.scaler.possible(), 1);
    table.list(&[]);
    assert_eq!((table.state(0), table.scaler.possible()), (State::Gone, 0));
    // And should it turn up again, it is deleted again.
    table.take();
    table.pass(HOUR_MS);
    table.list(&[(100, 0)]);
    table.pass(1);
    assert_eq!((table.take(), table.state(0)), (vec![delete], State::Deleting));
}

/// A node that says that something runs there is kept, whatever the rows say.
#[test]
fn a_busy_machine_is_not_deleted() {
    let mut table = Table::new(|pool, _| pool.machines_min = 0);
    let ids = table.start(1);
    table.take();
    table.ready(0, 100);
    table.tell(Event::Stop { instance: ids[0] });
    table.run_all();
    table.pass(10 * MINUTE_MS);
    table.take();
    table.tell(Event::Confirmed { machine: MachineId(0), running: Some(1) });
    assert_eq!((table.take(), table.state(0)), (vec![], State::Cordoned));
    assert_eq!(table.scaler.machine(MachineId(0)).unwrap().cause, Some(Cause::Unknown));
}

/// Before anything is bought, what was to go is kept.
#[test]
fn demand_takes_a_machine_back_that_was_to_go() {
    let mut table = Table::new(|_, _| {});
    let ids = table.start(1);
    table.take();
    table.ready(0, 100);
    table.tell(Event::Stop { instance: ids[0] });
    table.run_all();
    table.pass(10 * MINUTE_MS);
    table.take();
    let ids = table.start(1);
    assert_eq!(table.take(), [Command::Start { instance: ids[0], machine: MachineId(0) }]);
    table.tell(Event::Confirmed { machine: MachineId(0), running: Some(0) });
    assert_eq!((table.take(), table.state(0)), (vec![], State::Ready));
}

#[test]
fn whole_hours_are_used_to_their_end() {
    let mut table = Table::new(|pool, _| pool.billing = Billing::PerHour);
    let ids = table.start(1);
    table.take();
    let asked = table.now;
    table.ready(0, 100);
    table.tell(Event::Stop { instance: ids[0] });
    table.run_all();
    table.pass(56 * MINUTE_MS);
    assert_eq!(table.state(0), State::Ready);
    table.pass(2 * MINUTE_MS);
    assert_eq!(table.state(0), State::Draining);
    assert!(table.now.since(asked) < HOUR_MS);
}

#[test]
fn budgets_end_buying_and_nothing_else() {
    // A day's run of one machine, and not of two.
    let mut table = Table::new(|pool, _| pool.caps.per_month = Some(Micros(36_000 * 30)));
    table.start(23);
    table.take();
    table.ready(0, 100);
    table.start(1);
    assert_eq!(table.take(), []);
    assert!(matches!(table.scaler.pool(POOL).unwrap().hold, Some(Hold::PerMonth { .. })));
    assert_eq!(table.state(0), State::Ready);
    let mut table = Table::new(|_, limits| limits.caps.per_hour = Some(Micros(71_999)));
    table.start(24);
    assert_eq!(table.take().len(), 1);
    assert!(matches!(table.scaler.pool(POOL).unwrap().hold, Some(Hold::PerHour { fleet: true, .. })));
}

#[test]
fn a_flood_is_slowed_down() {
    let mut table = Table::new(|_, limits| limits.creations = 3);
    table.start(23 * 5);
    assert_eq!(table.take().len(), 3);
    table.pass(10 * MINUTE_MS - 1);
    assert_eq!(table.take().iter().filter(|command| matches!(command, Command::Create { .. })).count(), 0);
    table.pass(2);
    assert_eq!(table.take().iter().filter(|command| matches!(command, Command::Create { .. })).count(), 2);
}

/// A broken image: machines that never become nodes are not bought without end.
#[test]
fn machines_that_never_come_up_are_bought_ever_more_slowly() {
    let mut table = Table::new(|_, _| {});
    table.start(1);
    let mut server = 0;
    let begun = table.now;
    while table.now.since(begun) < 6 * HOUR_MS {
        for command in table.take() {
            match command {
                Command::Create { machine } => {
                    server += 1;
                    table.tell(Event::Created { machine, answer: CreateAnswer::Made(ServerId(server)) });
                }
                Command::Join { machine, server } => table.tell(Event::JoinFailed { machine, server }),
                Command::Delete { machine, .. } => {
                    table.tell(Event::Deleted { machine, answer: DeleteAnswer::Accepted });
                }
                _ => {}
            }
        }
        table.pass(5 * SECOND_MS);
        table.scaler.lists.under_way = None;
    }
    // Ten minutes at most between two, a minute or so at first.
    assert!((30..60).contains(&server), "{server} bought in six hours");
}

/// A service that runs nowhere: no machine is at fault, and none helps.
#[test]
fn a_service_that_fails_everywhere_buys_ever_more_slowly() {
    let mut table = Table::new(|pool, _| pool.machine = Room::slots(4));
    let ids = table.start(4);
    let mut server = 0;
    let mut pass = |table: &mut Table, hours: u64, is_running: bool| {
        let begun = table.now;
        while table.now.since(begun) < hours * HOUR_MS {
            for command in table.take() {
                match command {
                    Command::Create { machine } => {
                        server += 1;
                        table.tell(Event::Created { machine, answer: CreateAnswer::Made(ServerId(server)) });
                    }
                    Command::Join { machine, server } => table.tell(Event::Joined { machine, server }),
                    Command::Start { instance, machine } => {
                        table.tell(Event::Started { instance, machine, is_running })
                    }
                    Command::Stop { instance, machine } => {
                        table.tell(Event::Stopped { instance, machine, is_stopped: true });
                    }
                    Command::Confirm { machine } => table.tell(Event::Confirmed { machine, running: Some(0) }),
                    Command::Delete { machine, .. } => {
                        table.tell(Event::Deleted { machine, answer: DeleteAnswer::Accepted });
                    }
                    Command::List => {}
                }
            }
            let is_paid = |row: &&Machine| !matches!(row.state, State::Deleting | State::Gone);
            assert!(table.scaler.machines().filter(is_paid).count() <= 2, "one to be looked at, and one that is tried");
            table.pass(5 * SECOND_MS);
            table.scaler.lists.under_way = None;
        }
        server
    };
    let bought = pass(&mut table, 6, false);
    assert!((30..60).contains(&bought), "{bought} bought in six hours");
    // It is mended: the next machine serves them all.
    assert!(pass(&mut table, 1, true) <= bought + 1);
    assert!(ids.iter().all(|id| table.scaler.instance(*id).unwrap().doing == Doing::Running));
    assert_eq!(table.scaler.pools[0].failing, 0);
}

#[test]
fn a_pool_has_no_more_machines_than_it_is_let() {
    let mut table = Table::new(|pool, _| (pool.machines_min, pool.caps.machines) = (2, Some(9)));
    assert!(table.scaler.bound(PoolIndex(0), Some(0)) && !table.scaler.bound(PoolIndex(0), Some(0)));
    table.start(1);
    assert_eq!(table.take(), [], "neither for those that wait, nor to have some at least");
    assert!(table.scaler.bound(PoolIndex(0), Some(1)));
    table.tell(Event::Tick);
    assert_eq!(table.take(), [Command::Create { machine: MachineId(0) }]);
    assert!(table.scaler.bound(PoolIndex(0), None));
    table.tell(Event::Tick);
    assert_eq!(table.take(), [Command::Create { machine: MachineId(1) }]);
}

#[test]
fn many_silent_at_once_is_ones_own_network() {
    let mut table = Table::new(|_, _| {});
    table.start(23 * 4);
    table.take();
    for machine in 0..4 {
        table.ready(machine, 100 + machine);
    }
    for machine in 0..3 {
        table.tell(Event::Heard { machine: MachineId(machine), answers: false });
    }
    assert!(table.scaler.is_frozen());
    table.start(1);
    table.pass(HOUR_MS);
    assert_eq!(table.take(), []);
    assert_eq!(table.state(0), State::Ready);
    for machine in 0..3 {
        table.tell(Event::Heard { machine: MachineId(machine), answers: true });
    }
    assert!(!table.scaler.is_frozen());
    assert_eq!(table.take(), [Command::Create { machine: MachineId(4) }]);
    // Where lists lack nodes, these are asked: those that answer are there.
    table.list(&[(100, 0)]);
    table.pass(3 * MINUTE_MS);
    table.list(&[(100, 0)]);
    let asked: Vec<Command> = (1..4).map(|machine| Command::Confirm { machine: MachineId(machine) }).collect();
    assert_eq!(table.take(), asked);
    table.tell(Event::Confirmed { machine: MachineId(1), running: Some(23) });
    assert!(!table.scaler.is_frozen());
    for machine in [2, 3] {
        table.tell(Event::Confirmed { machine: MachineId(machine), running: None });
        table.pass(3 * MINUTE_MS);
        table.list(&[(100, 0), (101, 1)]);
    }
    assert_eq!([table.state(1), table.state(2), table.state(3)], [State::Ready, State::Gone, State::Gone]);
}

/// Lists that lack most of what there is, none of which answers: that is one's own credentials or network.
#[test]
fn lists_that_lack_most_are_not_believed() {
    let mut table = Table::new(|_, _| {});
    table.start(23 * 4);
    table.take();
    for machine in 0..4 {
        table.ready(machine, 100 + machine);
    }
    table.pass(3 * MINUTE_MS);
    table.list(&[]);
    table.pass(3 * MINUTE_MS);
    table.list(&[]);
    for machine in 0..4 {
        table.tell(Event::Confirmed { machine: MachineId(machine), running: None });
    }
    assert!(table.scaler.is_frozen());
    table.list(&[]);
    table.pass(HOUR_MS);
    table.list(&[]);
    assert_eq!(table.state(0), State::Ready);
    // A person has looked, and says that it is so.
    table.tell(Event::Thaw);
    table.list(&[]);
    assert_eq!(table.state(0), State::Gone);
}

#[test]
fn only_what_was_reported_is_deleted_as_an_orphan() {
    let mut table = Table::new(|_, _| {});
    table.tell(Event::DeleteOrphan { server: ServerId(7) });
    let asked = table.now;
    table.scaler.lists.under_way = Some(asked);
    let named = |id, name: &str| Server { id: ServerId(id), name: name.into(), created: Time(0) };
    let servers = vec![named(7, "kernels-old-3.acme.bulkhead"), named(8, "database.acme.example")];
    table.tell(Event::Listed { asked, servers });
    assert_eq!(table.scaler.orphans().collect::<Vec<_>>(), [(ServerId(7), "kernels-old-3.acme.bulkhead")]);
    table.pass(HOUR_MS);
    assert_eq!(table.take(), []);
    table.tell(Event::DeleteOrphan { server: ServerId(8) });
    table.tell(Event::DeleteOrphan { server: ServerId(7) });
    table.pass(1);
    assert_eq!(table.take(), [Command::Delete { machine: MachineId(0), server: ServerId(7) }]);
}

#[test]
fn a_drain_moves_what_may_be_moved() {
    let mut table = Table::new(|pool, _| pool.machine = Room::slots(2));
    let ids = table.start(3);
    table.take();
    table.ready(0, 100);
    table.ready(1, 101);
    table.tell(Event::Person { machine: MachineId(1), wish: Wish::Drain });
    // The other is full: it waits, and gives up in the end.
    assert_eq!((table.take(), table.state(1)), (vec![], State::Draining));
    table.tell(Event::Stop { instance: ids[0] });
    table.run_all();
    table.pass(11 * MINUTE_MS);
    assert_eq!(table.state(1), State::Cordoned);
    table.tell(Event::Person { machine: MachineId(1), wish: Wish::Drain });
    assert_eq!(table.take(), [Command::Start { instance: ids[2], machine: MachineId(0) }]);
    table.tell(Event::Started { instance: ids[2], machine: MachineId(0), is_running: true });
    assert_eq!(table.take(), [Command::Stop { instance: ids[2], machine: MachineId(1) }]);
    table.tell(Event::Stopped { instance: ids[2], machine: MachineId(1), is_stopped: true });
    assert_eq!(table.take(), [Command::Confirm { machine: MachineId(1) }]);
    let row = table.scaler.instance(ids[2]).unwrap();
    assert_eq!((row.doing, row.machine, row.to), (Doing::Running, Some(MachineId(0)), None));
}

#[test]
fn machines_are_emptied_where_that_saves_one() {
    let mut table = Table::new(|pool, _| {
        pool.machine = Room::slots(4);
        pool.consolidation = Some(crate::Consolidation { below_percent: 50, every_ms: 10 * MINUTE_MS });
    });
    let ids = table.start(8);
    table.take();
    table.ready(0, 100);
    table.ready(1, 101);
    for id in [0, 1, 4, 5, 6] {
        table.tell(Event::Stop { instance: ids[id] });
    }
    table.run_all();
    table.pass(11 * MINUTE_MS);
    assert_eq!(table.state(1), State::Draining);
    table.run_all();
    table.run_all();
    assert_eq!(table.scaler.machine(MachineId(0)).unwrap().used.slots, 3);
    assert_eq!(table.scaler.machine(MachineId(1)).unwrap().used.slots, 0);
}

/// What a crash leaves is taken up: the request that may have been sent is in doubt, the rest is begun again.
#[test]
fn a_crash_at_any_moment() {
    let mut table = Table::new(|_, _| {});
    let ids = table.start(24);
    table.take();
    table.ready(0, 100);
    let rows = Rows {
        machines: table.scaler.machines().cloned().collect(),
        instances: table.scaler.instances().cloned().collect(),
        ..Rows::default()
    };
    let pools = vec![table.scaler.pools[0].spec.clone()];
    table.scaler = Scaler::restore(table.scaler.names.clone(), table.scaler.limits, pools, rows, table.now);
    table.tell(Event::Tick);
    assert_eq!(table.take(), []);
    assert_eq!((table.state(0), table.state(1), table.scaler.possible()), (State::Ready, State::Creating, 2));
    table.list(&[(100, 0), (101, 1)]);
    assert_eq!(table.take(), [Command::Join { machine: MachineId(1), server: ServerId(101) }]);
    table.tell(Event::Joined { machine: MachineId(1), server: ServerId(101) });
    assert_eq!(table.take(), [Command::Start { instance: ids[23], machine: MachineId(1) }]);
    // New machines get new names.
    table.start(23);
    assert_eq!(table.take().last(), Some(&Command::Create { machine: MachineId(2) }));
}

#[test]
fn what_is_not_the_machines_fault_is_tried_there_again() {
    let mut table = Table::new(|pool, _| pool.machine = Room::slots(4));
    let ids = table.start(4);
    table.take();
    let (machine, server) = (MachineId(0), ServerId(100));
    table.tell(Event::Created { machine, answer: CreateAnswer::Made(server) });
    table.tell(Event::Joined { machine, server });
    table.take();
    for _ in 0..5 {
        for &instance in &ids {
            table.tell(Event::NotTried { instance, machine });
        }
        assert_eq!((table.take(), table.state(0)), (vec![], State::Ready));
        table.pass(MINUTE_MS);
        let again = ids.iter().map(|&instance| Command::Start { instance, machine });
        assert_eq!(table.take(), again.collect::<Vec<_>>());
    }
    for &instance in &ids {
        table.tell(Event::Started { instance, machine, is_running: true });
    }
    assert!(table.scaler.instances().all(|row| row.doing == Doing::Running));
}

#[test]
fn what_runs_where_it_was_given_up_is_stopped() {
    let mut table = Table::new(|pool, _| pool.machine = Room::slots(4));
    let ids = table.start(4);
    table.take();
    let (machine, server) = (MachineId(0), ServerId(100));
    table.tell(Event::Created { machine, answer: CreateAnswer::Made(server) });
    table.tell(Event::Joined { machine, server });
    table.take();
    for &instance in &ids[..3] {
        table.tell(Event::Started { instance, machine, is_running: false });
    }
    assert_eq!(table.state(0), State::Quarantined);
    table.take();
    // A start that was taken for failed comes about after all.
    table.tell(Event::Started { instance: ids[0], machine, is_running: true });
    assert!(table.take().contains(&Command::Stop { instance: ids[0], machine }));
}
