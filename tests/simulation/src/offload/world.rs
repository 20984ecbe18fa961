//! A state of the model, and what may happen next.

use aquifer_ledger::offload::OffloadStep;

use crate::defect::OffloadDefect;
use crate::offload::record::{Place, Pointer, object};

/// Attempts that may be begun.
const ATTEMPTS: u8 = 3;
/// Processes that offload.
const WORKERS: u8 = 2;

/// What is in the store under the name of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Object {
    Absent,
    /// Other bytes than were sent, or fewer.
    Bad,
    Good,
}

/// How far a process is with its attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Work {
    Idle,
    Claimed(u8),
    Written(u8),
    Verified(u8),
}

/// What bookies are told to delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Intent {
    Nothing,
    /// Their copies; the ledger stays.
    Copies,
    /// The ledger.
    Ledger,
}

/// What is known of an object that is not named by the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Known {
    /// Nothing is written down.
    Nothing,
    /// It is being written (`oc/`).
    InFlight,
    /// It is to be deleted (`od/`), and may still appear.
    MayAppear,
    /// It is to be deleted, and was complete.
    Dying,
}

/// A step of any process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// A process claims the ledger.
    Claim(u8),
    /// It writes its object, which is kept as it was sent, or not.
    Write(u8, bool),
    /// It reads its object back.
    Verify(u8),
    /// It has the ledger name its object.
    Commit(u8),
    /// It ends.
    Crash(u8),
    /// The reaper finds the object of an attempt whole, and has the ledger name it.
    Adopt(u8),
    /// The reaper gives an attempt up.
    GiveUp(u8),
    /// The reaper deletes an object.
    Delete(u8),
    /// The owner lets copies go.
    Drop,
    /// The owner deletes the ledger.
    Trim,
    /// Bookies delete what they are told to.
    Carry,
    /// That has come to its end.
    End,
    /// A backup names the object.
    BackUp,
    /// The backup is forgotten.
    Expire,
    /// Another place is found where objects are, or the right one again.
    Move,
    /// A build that knows nothing of objects writes the record again.
    Rewrite,
}

/// A state.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct World {
    /// The record of the ledger, while it has one.
    record: Option<Pointer>,
    intent: Intent,
    /// Bookies have copies.
    copies: bool,
    objects: [Object; ATTEMPTS as usize],
    known: [Known; ATTEMPTS as usize],
    begun: u8,
    workers: [Work; WORKERS as usize],
    /// What a backup names.
    backup: Option<u8>,
    is_elsewhere: bool,
    /// What may happen once only.
    has_crashed: bool,
    has_spoiled: bool,
    has_moved: bool,
    has_backed_up: bool,
}

impl World {
    /// A closed ledger at its bookies.
    pub(super) fn start() -> World {
        World {
            record: Some(Pointer::None),
            intent: Intent::Nothing,
            copies: true,
            objects: [Object::Absent; ATTEMPTS as usize],
            known: [Known::Nothing; ATTEMPTS as usize],
            begun: 0,
            workers: [Work::Idle; WORKERS as usize],
            backup: None,
            is_elsewhere: false,
            has_crashed: false,
            has_spoiled: false,
            has_moved: false,
            has_backed_up: false,
        }
    }

    fn object(&self, attempt: u8) -> Object {
        self.objects[usize::from(attempt)]
    }

    fn known(&self, attempt: u8) -> Known {
        self.known[usize::from(attempt)]
    }

    fn work(&self, worker: u8) -> Work {
        self.workers[usize::from(worker)]
    }

    /// The attempt whose object the record names.
    fn named(&self) -> Option<u8> {
        match self.record {
            Some(Pointer::Stored(attempt, _)) => Some(attempt),
            _ => None,
        }
    }

    /// A process would still send bytes for an attempt.
    fn is_sending(&self, attempt: u8) -> bool {
        self.workers.contains(&Work::Claimed(attempt))
    }

    /// What is promised to be read is somewhere.
    pub(super) fn is_readable(&self) -> bool {
        match self.record {
            _ if self.intent == Intent::Ledger => true,
            None => true,
            Some(Pointer::Stored(attempt, Place::Going | Place::Gone)) => {
                self.object(attempt) == Object::Good
            }
            Some(_) => self.copies,
        }
    }

    pub(super) fn objects_are_recorded(&self) -> bool {
        (0..ATTEMPTS).all(|attempt| {
            let is_recorded = self.known(attempt) != Known::Nothing;
            self.object(attempt) == Object::Absent || is_recorded || self.named() == Some(attempt)
        })
    }

    pub(super) fn live_object_stays(&self) -> bool {
        self.named()
            .is_none_or(|attempt| self.known(attempt) == Known::Nothing)
    }

    pub(super) fn backup_is_whole(&self) -> bool {
        self.backup
            .is_none_or(|attempt| self.object(attempt) == Object::Good)
    }

    pub(super) fn is_offloaded(&self) -> bool {
        matches!(self.record, Some(Pointer::Stored(_, Place::Gone))) && !self.copies
    }

    pub(super) fn has_second(&self) -> bool {
        self.named() == Some(1)
    }

    pub(super) fn is_all_gone(&self) -> bool {
        let is_gone = |attempt| {
            self.object(attempt) == Object::Absent && self.known(attempt) == Known::Nothing
        };
        self.record.is_none() && self.begun == ATTEMPTS && (0..ATTEMPTS).all(is_gone)
    }

    /// What may happen.
    pub(super) fn steps(&self, defect: Option<OffloadDefect>) -> Vec<Step> {
        let mut steps = Vec::new();
        for worker in 0..WORKERS {
            let (work, is_here) = (self.work(worker), !self.is_elsewhere);
            match work {
                Work::Idle if self.record == Some(Pointer::None) && self.begun < ATTEMPTS => {
                    steps.push(Step::Claim(worker));
                }
                Work::Claimed(_) if is_here => {
                    steps.push(Step::Write(worker, true));
                    if !self.has_spoiled {
                        steps.push(Step::Write(worker, false));
                    }
                }
                Work::Written(_) if is_here => steps.push(Step::Verify(worker)),
                Work::Verified(_) => steps.push(Step::Commit(worker)),
                Work::Idle | Work::Claimed(_) | Work::Written(_) => {}
            }
            if work != Work::Idle && !self.has_crashed {
                steps.push(Step::Crash(worker));
            }
        }
        for attempt in 0..self.begun {
            match self.known(attempt) {
                Known::InFlight => {
                    steps.push(Step::GiveUp(attempt));
                    if self.object(attempt) == Object::Good && !self.is_elsewhere {
                        steps.push(Step::Adopt(attempt));
                    }
                }
                Known::MayAppear | Known::Dying if self.may_delete(attempt, defect) => {
                    steps.push(Step::Delete(attempt));
                }
                Known::Nothing | Known::MayAppear | Known::Dying => {}
            }
        }
        self.steps_of_owner(defect, &mut steps);
        steps
    }

    /// The reaper keeps what backups name, and looks at the marker of the place first.
    fn may_delete(&self, attempt: u8, defect: Option<OffloadDefect>) -> bool {
        let is_held = self.backup == Some(attempt) && self.known(attempt) == Known::Dying;
        let is_free = !is_held || defect == Some(OffloadDefect::HoldIgnored);
        let is_here =
            !self.is_elsewhere || defect == Some(OffloadDefect::AbsenceInWrongPlaceCounts);
        is_free && is_here
    }

    fn steps_of_owner(&self, defect: Option<OffloadDefect>, steps: &mut Vec<Step>) {
        let droppable = match self.record {
            Some(Pointer::Stored(attempt, Place::Kept)) => Some(attempt),
            Some(Pointer::Claimed(attempt)) if defect == Some(OffloadDefect::DropsBeforeVerify) => {
                Some(attempt)
            }
            _ => None,
        };
        // It looks whether the object is there, in the right place.
        let is_there = droppable.is_some_and(|attempt| self.object(attempt) != Object::Absent);
        if is_there && !self.is_elsewhere && self.intent == Intent::Nothing {
            steps.push(Step::Drop);
        }
        if self.record.is_some() && self.intent != Intent::Ledger {
            steps.push(Step::Trim);
        }
        if self.intent != Intent::Nothing {
            steps.push(match self.copies {
                true => Step::Carry,
                false => Step::End,
            });
        }
        let is_live = self.intent != Intent::Ledger;
        if self.named().is_some() && is_live && !self.has_backed_up {
            steps.push(Step::BackUp);
        }
        if self.backup.is_some() {
            steps.push(Step::Expire);
        }
        if self.is_elsewhere || !self.has_moved {
            steps.push(Step::Move);
        }
        let is_rewritten = self.record.is_some_and(|record| {
            let is_known = record.old_builds_rewrite();
            record != Pointer::None
                && (is_known || defect == Some(OffloadDefect::OldBuildErasesPointer))
        });
        if is_rewritten {
            steps.push(Step::Rewrite);
        }
    }

    /// The state after a step.
    pub(super) fn after(&self, step: Step, defect: Option<OffloadDefect>) -> World {
        let mut world = self.clone();
        match step {
            Step::Claim(worker) => world.claim(worker),
            Step::Write(worker, is_good) => world.write(worker, is_good),
            Step::Verify(worker) => world.verify(worker, defect),
            Step::Commit(worker) => world.commit(worker, defect),
            Step::Crash(worker) => {
                world.workers[usize::from(worker)] = Work::Idle;
                world.has_crashed = true;
            }
            Step::Adopt(attempt) => world.store(attempt),
            Step::GiveUp(attempt) => world.give_up(attempt),
            Step::Delete(attempt) => world.delete(attempt, defect),
            Step::Drop => world.drop_copies(),
            Step::Trim => world.intent = Intent::Ledger,
            Step::Carry => world.copies = false,
            Step::End => world.end(),
            Step::BackUp => {
                world.backup = world.named();
                world.has_backed_up = true;
            }
            Step::Expire => world.backup = None,
            Step::Move => {
                world.is_elsewhere = !world.is_elsewhere;
                world.has_moved = true;
            }
            Step::Rewrite => world.record = Some(Pointer::None),
        }
        world
    }

    /// A step of an attempt on the record; `false` when the protocol refuses it.
    fn advance(&mut self, attempt: u8, step: &OffloadStep) -> bool {
        let next = self.record.and_then(|record| record.after(attempt, step));
        if next.is_some() {
            self.record = next;
        }
        next.is_some()
    }

    fn claim(&mut self, worker: u8) {
        let attempt = self.begun;
        if self.advance(attempt, &OffloadStep::Claim) {
            self.begun += 1;
            self.known[usize::from(attempt)] = Known::InFlight;
            self.workers[usize::from(worker)] = Work::Claimed(attempt);
        }
    }

    fn write(&mut self, worker: u8, is_good: bool) {
        let Work::Claimed(attempt) = self.work(worker) else {
            return;
        };
        self.has_spoiled |= !is_good;
        self.objects[usize::from(attempt)] = match is_good {
            true => Object::Good,
            false => Object::Bad,
        };
        self.workers[usize::from(worker)] = Work::Written(attempt);
    }

    fn verify(&mut self, worker: u8, defect: Option<OffloadDefect>) {
        let Work::Written(attempt) = self.work(worker) else {
            return;
        };
        let is_good = match self.object(attempt) {
            Object::Good => true,
            Object::Bad => defect == Some(OffloadDefect::VerifiesWithoutReading),
            Object::Absent => false,
        };
        self.workers[usize::from(worker)] = match is_good {
            true => Work::Verified(attempt),
            false => Work::Idle,
        };
        if !is_good {
            self.give_up(attempt);
        }
    }

    fn commit(&mut self, worker: u8, defect: Option<OffloadDefect>) {
        let Work::Verified(attempt) = self.work(worker) else {
            return;
        };
        self.workers[usize::from(worker)] = Work::Idle;
        let is_blind = defect == Some(OffloadDefect::CommitsWithoutComparing);
        if is_blind && self.record.is_some() {
            self.record = Some(Pointer::Stored(attempt, Place::Kept));
            self.forget_in_flight(attempt);
        } else {
            self.store(attempt);
        }
    }

    /// The ledger names the object of an attempt, or that is given up.
    fn store(&mut self, attempt: u8) {
        match self.advance(attempt, &OffloadStep::Store(object(attempt))) {
            true => self.forget_in_flight(attempt),
            false => self.give_up(attempt),
        }
    }

    fn forget_in_flight(&mut self, attempt: u8) {
        if self.known(attempt) == Known::InFlight {
            self.known[usize::from(attempt)] = Known::Nothing;
        }
    }

    fn give_up(&mut self, attempt: u8) {
        if self.known(attempt) != Known::InFlight {
            return;
        }
        self.known[usize::from(attempt)] = Known::MayAppear;
        if self.record == Some(Pointer::Claimed(attempt)) {
            self.advance(attempt, &OffloadStep::GiveUp);
        }
    }

    fn delete(&mut self, attempt: u8, defect: Option<OffloadDefect>) {
        if !self.is_elsewhere {
            self.objects[usize::from(attempt)] = Object::Absent;
        }
        // It is looked for until no request for it can be under way.
        let may_come = self.known(attempt) == Known::MayAppear
            && self.is_sending(attempt)
            && defect != Some(OffloadDefect::LateObjectForgotten);
        if !may_come {
            self.known[usize::from(attempt)] = Known::Nothing;
        }
    }

    fn drop_copies(&mut self) {
        if let Some(attempt) = self.named() {
            self.advance(attempt, &OffloadStep::DropCopies);
        }
        self.intent = Intent::Copies;
    }

    fn end(&mut self) {
        match self.intent {
            Intent::Nothing => {}
            Intent::Copies => {
                if let Some(attempt) = self.named() {
                    self.advance(attempt, &OffloadStep::CopiesGone);
                }
            }
            Intent::Ledger => {
                match self.record {
                    Some(Pointer::Stored(attempt, _)) => {
                        self.known[usize::from(attempt)] = Known::Dying;
                    }
                    Some(Pointer::Claimed(attempt)) => self.give_up(attempt),
                    Some(Pointer::None) | None => {}
                }
                self.record = None;
            }
        }
        self.intent = Intent::Nothing;
    }
}
