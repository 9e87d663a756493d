// The driver's header: kernels include it and use nothing of it.
#pragma once
