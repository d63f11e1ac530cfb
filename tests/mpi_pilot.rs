//! The end-to-end suite over MPI: `BEAMPILOT_MPIEXEC` names the launcher.
#![cfg(feature = "mpi")]
mod common;

suite! {
    common::rig::mpi(3);
    once_publishes_everything,
    a_slow_transfer_is_awaited_and_sigterm_drains,
    bad_input_is_quarantined_and_holds_nothing_up,
    killed_pilots_lose_nothing_and_repeat_nothing,
    a_rewritten_scan_is_a_new_version,
    two_pilots_share_a_campaign,
    every_completeness_rule_works,
    a_full_disk_pauses_and_resumes,
    foreign_text_does_no_harm,
    wrong_configuration_ends_with_78,
    the_measured_tooth_is_published,
    a_crashed_executor_is_replaced,
    a_killed_keeper_is_replaced,
    nothing_outlives_a_killed_rank,
    a_task_over_its_limit_is_killed_and_tried_elsewhere,
    a_task_that_takes_too_much_memory_is_killed,
    a_runaway_family_is_ended,
    a_rank_that_was_given_up_starts_over,
    sigterm_to_everybody_drains_quickly,
    a_campaign_under_fire_loses_and_doubles_nothing,
}
