"""The cost of a model: operations and bytes counted from its configuration, and time and energy on a device."""

from conformer.cost.devices import DEVICES as DEVICES
from conformer.cost.devices import Device as Device
from conformer.cost.operations import MODULES as MODULES
from conformer.cost.operations import Operation as Operation
from conformer.cost.operations import Workload as Workload
from conformer.cost.operations import num_parameters as num_parameters
from conformer.cost.operations import operations as operations
from conformer.cost.operations import state_elements as state_elements
from conformer.cost.predict import PRECISIONS as PRECISIONS
from conformer.cost.predict import Cost as Cost
from conformer.cost.predict import Precision as Precision
from conformer.cost.predict import predict as predict
from conformer.cost.predict import total as total
