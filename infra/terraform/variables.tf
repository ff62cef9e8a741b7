variable "prefix" {
  description = "What the names of buckets, key and policies begin with; buckets are named worldwide."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,40}$", var.prefix))
    error_message = "The prefix has lower-case letters, digits and dashes, at most 41 of them."
  }
}

variable "archive_lock_days" {
  description = "Days for which nobody can remove an archived partition or a report; null leaves it to each object (partitions: lock in the fleet file)."
  type        = number
  default     = null
}

variable "archive_lock_mode" {
  description = "GOVERNANCE can be lifted by who has that right, COMPLIANCE by nobody, the account's owner included."
  type        = string
  default     = "GOVERNANCE"

  validation {
    condition     = contains(["GOVERNANCE", "COMPLIANCE"], var.archive_lock_mode)
    error_message = "The mode is GOVERNANCE or COMPLIANCE."
  }
}

variable "hidden_days" {
  description = "Days for which what was deleted or overwritten can be brought back."
  type        = number
  default     = 35
}

variable "upload_days" {
  description = "Days after which an unfinished multipart upload is dropped. pgvigil drops its own at the next run; this is for what nobody comes back to."
  type        = number
  default     = 7
}

variable "trusted" {
  description = "Who may take the role of that name: backup (database hosts), archive (where pgvigil runs), drill (where drills run). ARNs of roles or users; none makes no role."
  type        = map(list(string))
  default     = {}

  validation {
    condition     = alltrue([for name in keys(var.trusted) : contains(["backup", "archive", "drill"], name)])
    error_message = "The roles are backup, archive and drill."
  }
}

variable "tags" {
  description = "Tags of everything that is made."
  type        = map(string)
  default     = {}
}
