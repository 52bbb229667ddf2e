"""What people met with files, labels, networks and tasks of their own, and the tests that hold what happens now.

The situations are those of trials with public files and of new users. Each has a test, so that none of them returns
unnoticed; where a test of that name is gone, this file says so.
"""

import re
from pathlib import Path

import pytest

FILES = {
    "folders 1..10 are classes in ImageFolder's order": "datasets/own_test.py::"
    "test_labels_and_order_are_those_of_imagefolder",
    "a number that is a label and a name": "data_test.py::"
    "test_a_number_that_may_be_a_label_or_a_name_is_refused_until_told",
    "label, name and count of what is forgotten are printed": "cli/main_test.py::"
    "test_a_run_leaves_network_weights_results_and_report",
    "an original near chance": "jobs/originals_test.py::test_an_original_that_does_not_answer_is_near_chance",
    "a forget set that is not known": "jobs/originals_test.py::"
    "test_a_forget_set_that_is_not_known_is_refused_if_it_is_large_enough",
    "wrong normalisation and other suspects": "jobs/loading_test.py::test_each_of_the_usual_suspects_is_named",
    "same names and shapes, another pool": "jobs/loading_test.py::"
    "test_files_of_known_authors_are_read_and_what_was_done_is_said",
    "options of a network for every command": "cli/options_test.py::"
    "test_every_command_that_reads_a_network_is_told_all_about_it",
    "compile over DDP, AveragedModel, Lightning": "torch_weights/fitting_test.py::"
    "test_a_shared_prefix_is_removed_and_said",
    "n_averaged next to module.": "torch_weights/fitting_test.py::"
    "test_arrays_without_the_prefix_are_left_aside_and_named",
    "torchvision, timm, chenyaofo, kuangliu": "jobs/loading_test.py::"
    "test_files_of_known_authors_are_read_and_what_was_done_is_said",
    "names of kuangliu come back": "cli/main_test.py::"
    "test_the_file_that_comes_out_has_the_names_of_the_one_that_went_in_also_after_a_second_run",
    "pruned weights": "torch_weights/fitting_test.py::test_pruned_weights_are_multiplied_by_their_masks",
    "116 arrays under names of one's own": "jobs/loading_test.py::test_arrays_in_order_are_offered_and_a_table_renames",
    "Namespace, PosixPath, device, datetime": "torch_weights/state_dicts_test.py::"
    "test_objects_beside_the_weights_are_left_aside_and_named",
    "numpy arrays, RNG states, defaultdict": "torch_weights/state_dicts_test.py::"
    "test_arrays_and_default_dicts_of_numpy_and_python_are_no_obstacle",
    "nothing is executed": "torch_weights/state_dicts_test.py::test_a_forbidden_global_is_named_and_not_run",
    "TorchScript, a zip around a .pth": "torch_weights/state_dicts_test.py::test_a_zip_of_something_else_is_refused",
    "normalize.mean is missing": "jobs/loading_test.py::test_a_file_without_the_mean_of_its_images_is_told_to_name_it",
    "an int or None among the tensors": "torch_weights/state_dicts_test.py::"
    "test_numbers_among_the_tensors_are_left_aside_and_named",
    "quantised, sparse, float8 fnuz": "torch_weights/state_dicts_test.py::"
    "test_tensors_that_cannot_be_read_are_refused_for_the_true_reason",
    "other true reasons": "torch_weights/state_dicts_test.py::test_other_true_reasons_are_recognised",
    "shard 1 of 2 alone": "jobs/loading_test.py::test_a_part_of_a_network_is_called_so",
    "a state dict five levels deep": "torch_weights/state_dicts_test.py::"
    "test_a_state_dict_lies_at_most_eight_dicts_deep",
    "EMA next to plain weights": "torch_weights/state_dicts_test.py::"
    "test_averaged_weights_beside_the_others_are_a_choice",
    "single files of Stable Diffusion": "diffusion/importing_test.py::"
    "test_what_others_put_next_to_the_networks_is_left_aside_and_named",
    "forget lists with a mark, .npy, .csv, .pt": "data_test.py::test_files_of_many_forms_name_positions",
    "third-party files, bit-equal": "torch_weights/state_dicts_test.py::test_published_weights_survive_a_round_trip",
    "real files of PyTorch, all types": "torch_weights/state_dicts_test.py::test_all_types_and_views_are_read",
    "onnx, keras, h5, half downloads": "torch_weights/state_dicts_test.py::"
    "test_other_files_are_told_what_they_look_like",
    "a live module, in and out": "models/adapters_test.py::test_trained_weights_go_in_and_new_ones_come_back",
    "a state dict of a network that is not in the zoo": "own_networks_test.py::test_weights_of_pytorch_give_its_logits",
    "a logits check": "jobs/loading_test.py::test_reading_a_network_compares_its_answers",
}
"""Public situations and files."""

USERS = {
    "the README's example unlearns": "docs_test.py::test_the_original_of_the_readme_saw_the_forget_set_and_knows_it",
    "npz without a test set": "datasets/own_test.py::test_without_one_none_is_taken_unless_it_is_asked_for",
    "a forget set larger than the retain set": "methods/methods_test.py::"
    "test_every_forget_example_is_seen_however_large_the_forget_set",
    "a destroyed network": "jobs/run_summaries_test.py::test_a_collapse_is_a_warning_unless_it_is_allowed",
    "a collapse has a status of its own": "task_commands_test.py::runs",
    "Equinox is drawn in its own size": "reinit_test.py::test_every_layer_is_drawn_in_the_size_of_its_frameworks_own",
    "convolution, flatten, linear": "own_networks_test.py::"
    "test_a_layer_that_may_read_a_flattened_image_is_refused_until_told",
    "export of nested BatchNorms": "own_networks_test.py::test_the_way_back_has_every_name_and_value",
    "an nnx instance": "models/adapters_test.py::test_nothing_of_an_instance_changes_before_it_is_restored",
    "progress where there is no terminal": "terminal_test.py::"
    "test_what_is_no_terminal_gets_lines_without_control_characters",
    "partition": "projection_test.py::test_partition_projects_the_leaves_of_its_part_alone",
    "inject_hyperparams": "projection_test.py::test_numbers_may_be_injected_and_traced",
    "wrong K, no K axis": "projection_test.py::test_constraints_that_do_not_fit_are_named",
    "TrainState, nnx Optimizer": "projection_test.py::test_training_loops_of_flax_hand_the_constraints_over",
    "shard_map": "training/sharding_test.py::_check_shards",
    "negative scores": "masks_test.py::TestNegativeScores",
    "NaN, labels that cannot be": "data_test.py::TestCheckValues",
    "sets, generators, masks": "data_test.py::test_sets_generators_and_masks_are_taken",
    "one-hot labels, keys x and y": "losses_test.py::test_batches_that_cannot_be_used_are_refused",
    "resuming with other settings": "training/identity_test.py::test_the_first_three_differences_are_named",
    "help": "cli/options_test.py::test_help_lists_what_can_be_chosen_and_the_settings_of_what_is_chosen",
    "an extra that is installed from a clone": "deletion/signing_test.py::"
    "test_a_missing_package_is_named_with_its_extra",
    "reports on a phone and in the dark": "browser_test.py::test_report_opens_from_disk",
    "a regression from end to end": "own_tasks_test.py::test_an_evaluation_of_ones_own_networks",
    "a regression in the command line": "task_commands_test.py::"
    "test_a_regression_is_unlearned_measured_and_compared_with_retraining",
    "a site with every public name": "site_test.py::test_every_public_name_is_in_the_reference_with_its_source",
}
"""What new users met."""


@pytest.mark.parametrize("situations", [FILES, USERS], ids=["files", "users"])
def test_every_situation_has_a_test_that_exists(situations):
    gone = []
    for situation, test in situations.items():
        path, name = test.split("::")
        text = (Path(__file__).parent / path).read_text(encoding="utf-8")
        if not re.search(rf"^ *(def|class) {name}\b", text, re.MULTILINE):
            gone.append(f"{situation}: {test}")
    assert gone == []
