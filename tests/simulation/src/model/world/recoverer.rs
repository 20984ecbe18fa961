//! Recoverers of the ledger.

use std::collections::BTreeMap;

use aquifer_ledger::recovery::machine::{Recovery, RecoveryAction, RecoveryEvent};
use aquifer_model::id::{BookieId, EntryId};
use aquifer_model::storage::{AddEntry, OrderedOperation};

use crate::defect::Defect;
use crate::model::part::Part;
use crate::model::settings::Setting;
use crate::model::world::{About, RecordState, Recoverer, Tag, World};

impl World {
    pub(super) fn begin_recovery(&mut self, setting: &Setting, client: u8) {
        let slot = usize::from(client - 1);
        let run = self.recoverers[slot].as_ref().map_or(0, |r| r.run + 1);
        let record = self.record.change();
        record.version += 1;
        record.state = RecordState::InRecovery;
        let last = self.record.fragments.last_key_value();
        let (floor, members) = last
            .map(|(first, members)| (*first, members.clone()))
            .unwrap_or((EntryId::FIRST, Vec::new()));
        let floor = match setting.defect {
            Some(Defect::StartFloorMissing) => EntryId::FIRST,
            _ => floor,
        };
        let (machine, actions) =
            Recovery::start(setting.quorum, members.clone(), floor, setting.window);
        self.recoverers[slot] = Part::new(Some(Recoverer {
            run,
            version: self.record.version,
            members,
            machine,
        }));
        self.recover(setting, client, actions);
    }

    pub(super) fn tell_recoverer(&mut self, setting: &Setting, client: u8, event: RecoveryEvent) {
        let Some(recoverer) = self.recoverers[usize::from(client - 1)].change() else {
            return;
        };
        let mut actions = Vec::new();
        recoverer.machine.on(event, &mut actions);
        self.recover(setting, client, actions);
    }

    fn recover(&mut self, setting: &Setting, client: u8, actions: Vec<RecoveryAction>) {
        let slot = usize::from(client - 1);
        for action in actions {
            let run = self.recoverers[slot].as_ref().map_or(0, |r| r.run);
            let tag = |about| Tag {
                client,
                run,
                about,
                again: false,
            };
            match action {
                RecoveryAction::Fence { position, bookie } => {
                    let tag = tag(About::Fence(position));
                    self.send(bookie, tag, OrderedOperation::Fence);
                }
                RecoveryAction::Read {
                    position,
                    bookie,
                    entry,
                } => {
                    let tag = tag(About::Read(position, entry));
                    self.send(bookie, tag, OrderedOperation::RecoveryRead(entry));
                }
                RecoveryAction::Write {
                    position,
                    bookie,
                    entry,
                } => {
                    let offset = usize::try_from(entry.0).unwrap_or(usize::MAX);
                    let add = AddEntry {
                        recovery: true,
                        ..self.sent[offset].clone()
                    };
                    let tag = tag(About::Write(position, entry));
                    self.send(bookie, tag, OrderedOperation::Add(add));
                }
                RecoveryAction::Replace { failed } => self.replace(setting, client, &failed),
                RecoveryAction::Close {
                    fragments,
                    last_entry,
                    ..
                } => self.close(setting, client, fragments, last_entry),
                RecoveryAction::Abort => {
                    self.aborts += 1;
                    self.forget_unheard(client);
                }
            }
        }
    }

    fn replace(&mut self, setting: &Setting, client: u8, failed: &[usize]) {
        let Some(members) = self.recoverers[usize::from(client - 1)]
            .as_ref()
            .map(|r| r.members.clone())
        else {
            return;
        };
        let event = match self.replacements(&members, failed) {
            Some(members) => RecoveryEvent::Replaced { members },
            None => RecoveryEvent::ReplaceFailed,
        };
        let changed = match &event {
            RecoveryEvent::Replaced { members } => Some(members.clone()),
            _ => None,
        };
        if let Some(recoverer) = self.recoverers[usize::from(client - 1)].change()
            && let Some(members) = changed
        {
            recoverer.members = members;
        }
        self.tell_recoverer(setting, client, event);
        if setting.defect == Some(Defect::FragmentsPublishedInRecovery)
            && let Some(recoverer) = self.recoverers[usize::from(client - 1)].change()
            && recoverer.version == self.record.version
        {
            let made = recoverer.machine.fragments().clone();
            let record = self.record.change();
            record.fragments.extend(made);
            record.version += 1;
            recoverer.version = record.version;
        }
    }

    fn close(
        &mut self,
        setting: &Setting,
        client: u8,
        fragments: BTreeMap<EntryId, Vec<BookieId>>,
        last_entry: Option<EntryId>,
    ) {
        let version = self.recoverers[usize::from(client - 1)]
            .as_ref()
            .map(|r| r.version);
        if self.record.state == RecordState::InRecovery && version == Some(self.record.version) {
            let entries = last_entry.map_or(0, |last| last.0 + 1);
            let record = self.record.change();
            record.state = RecordState::Closed(entries);
            record.fragments.extend(fragments);
            record.version += 1;
            if setting.quorum.ack() < setting.quorum.write() {
                record.doubted = record.fragments.values().flatten().copied().collect();
            }
        }
        self.forget_unheard(client);
    }
}
