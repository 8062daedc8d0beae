// Which line of a list of attributes cannot be, and why, in words for whoever wrote it.
#pragma once

#include <string>

#include "base/status.h"
#include "core/svm/types.h"
#include "wire/svm.h"

namespace ferry::manager {

/// The line as the core knows it. Numbers that no Attribute can hold become such that the core refuses.
[[nodiscard]] core::Attribute attribute_of(const wire::SvmLine& line);

/// "line 2, FERRY_SVM_PREFERRED_LOC: 7 is no device (this machine has 2), nor ..."
[[nodiscard]] std::string text_of_wrong(unsigned number, const wire::SvmLine& line, Status status, unsigned devices,
                                        bool set);

}  // namespace ferry::manager
