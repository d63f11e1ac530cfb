//! Executors that die, without MPI.

mod common;

suite! {
    Some(common::rig::Launcher::Embedded);
    a_crashed_executor_is_replaced,
    a_stopped_executor_is_replaced,
    a_killed_keeper_is_replaced,
    nothing_outlives_a_killed_rank,
    sigterm_to_everybody_drains_quickly,
    a_campaign_under_fire_loses_and_doubles_nothing,
    a_successor_takes_over_at_once,
}
