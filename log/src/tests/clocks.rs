//! Clocks of owners that go back, or were ahead (F10).

use super::*;

#[tokio::test(start_paused = true)]
async fn broker_time_never_goes_back_over_owners_with_slower_clocks_h13() {
    let world = TestWorld::new(1);
    let clock = world.clock.clone().unwrap();
    let owner = Owner::open(world.logs(), options(100)).await;
    owner.append_all(0..1).await;
    clock.set_wall_ms(1_700_000_005_000);
    owner.append_all(1..2).await;
    owner.log.close().await.unwrap();

    clock.set_wall_ms(1_600_000_000_000);
    let heir = Owner::open(world.logs(), options(100)).await;
    heir.append_all(2..4).await;
    let times: Vec<u64> = heir
        .read_all()
        .await
        .iter()
        .map(|entry| entry.head.broker_time_ms)
        .collect();
    let (first, later) = (1_700_000_000_000, 1_700_000_005_000);
    assert_eq!(times, [first, later, later, later]);
}

/// What a clock that was ahead has dated, and what follows, goes when that time has come.
#[tokio::test(start_paused = true)]
async fn what_is_dated_ahead_goes_when_its_time_has_come_f10() {
    let world = TestWorld::new(1);
    let clock = world.clock.clone().unwrap();
    let (now, day, hour) = (1_700_000_000_000, 86_400_000, 3_600_000);
    clock.set_wall_ms(now + day);
    let owner = Owner::open(world.logs(), options(2)).await;
    owner.append_all(0..2).await;
    owner.log.close().await.unwrap();
    clock.set_wall_ms(now);
    let heir = Owner::open(world.logs(), options(2)).await;
    heir.append_all(2..5).await;
    let end = heir.log.end();
    let kept = Retention {
        time_ms: Some(hour),
        size_bytes: Some(0),
    };
    clock.set_wall_ms(now + day + hour - 1);
    assert_eq!(heir.log.trim(end, kept).await, Ok(Index(0)));
    clock.set_wall_ms(now + day + hour);
    assert_eq!(heir.log.trim(end, kept).await, Ok(heir.log.first()));
    assert!(heir.log.first() > Index(0));
}
