//! Executors that die, without MPI.

mod common;

suite! {
    Some(common::rig::Launcher::Embedded);
    a_crashed_executor_is_replaced,
    a_stopped_executor_is_replaced,
    a_killed_keeper_is_replaced,
    nothing_outlives_a_killed_rank,
    a_task_over_its_limit_is_killed_and_tried_elsewhere,
    a_task_that_takes_too_much_memory_is_killed,
    a_runaway_family_is_ended,
    a_scan_of_four_deaths_is_set_aside_and_comes_back,
    sigterm_to_everybody_drains_quickly,
    a_campaign_under_fire_loses_and_doubles_nothing,
    a_successor_takes_over_at_once,
}
