//! The end-to-end suite without MPI.

mod common;

suite! {
    Some(common::rig::Launcher::Embedded);
    once_publishes_everything,
    a_slow_transfer_is_awaited_and_sigterm_drains,
    bad_input_is_quarantined_and_holds_nothing_up,
    killed_pilots_lose_nothing_and_repeat_nothing,
    a_rewritten_scan_is_a_new_version,
    linked_files_belong_to_the_input,
    two_pilots_share_a_campaign,
    every_completeness_rule_works,
    a_full_disk_pauses_and_resumes,
    foreign_text_does_no_harm,
    wrong_configuration_ends_with_78,
    the_measured_tooth_is_published,
}
