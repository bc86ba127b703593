"""The user's settings as one frozen `Config`: project file, profile, `--set`, environment.

models        what the project file may contain: `ProjectFile`, its sections, `Config`
project_file  reads it, with a profile and `--set` on top; `find_project`, `project_folder`
requirements  what `pip` means: itself, [project], or a file
comments      what the project file says about its parameters
outputs       which outputs can be declared
machines      Kaggle's machines by their `machine_shape`
names         names that are made of the kernel's: of datasets, and of kernels of campaigns
load          `load_config` puts all of it together; `config_values` says where each value is from

Other packages use the names below, as if this were one module.
"""

from kernelkit.config.comments import parameter_comments
from kernelkit.config.load import (
    ConfigValue,
    checked_endpoint,
    config_values,
    is_literal,
    load_config,
    name_problem,
)
from kernelkit.config.machines import MACHINES, P100, SHAPES, MachineShape, gpu_tflops
from kernelkit.config.models import (
    RESERVED_NAMES,
    Arguments,
    Config,
    DescribedParameter,
    KernelSettings,
    MetricGoal,
    Parameter,
    ProjectFile,
    Pruner,
    PruningSettings,
    Sampler,
    SubmissionSettings,
    SweepSettings,
    TrialSettings,
    entry_module,
    is_pattern,
    is_script,
)
from kernelkit.config.names import (
    CHAIN_SUFFIX,
    LONGEST_TITLE,
    SHORTEST_NAME,
    derived_name,
    is_kernel_of,
    lane_suffix,
)
from kernelkit.config.outputs import OWN_OUTPUTS, is_several
from kernelkit.config.project_file import (
    PROJECT_FILE,
    closest,
    find_project,
    near_miss,
    project_folder,
    setting_text,
)

__all__ = [
    "CHAIN_SUFFIX",
    "LONGEST_TITLE",
    "MACHINES",
    "OWN_OUTPUTS",
    "P100",
    "PROJECT_FILE",
    "RESERVED_NAMES",
    "SHAPES",
    "SHORTEST_NAME",
    "Arguments",
    "Config",
    "ConfigValue",
    "DescribedParameter",
    "KernelSettings",
    "MachineShape",
    "MetricGoal",
    "Parameter",
    "ProjectFile",
    "Pruner",
    "PruningSettings",
    "Sampler",
    "SubmissionSettings",
    "SweepSettings",
    "TrialSettings",
    "checked_endpoint",
    "closest",
    "config_values",
    "derived_name",
    "entry_module",
    "find_project",
    "gpu_tflops",
    "is_kernel_of",
    "is_literal",
    "is_pattern",
    "is_script",
    "is_several",
    "lane_suffix",
    "load_config",
    "name_problem",
    "near_miss",
    "parameter_comments",
    "project_folder",
    "setting_text",
]
