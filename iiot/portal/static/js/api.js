// The REST API from a page: cookies say who, the CSRF header says that the page itself asks.

export const csrfToken = () => document.querySelector('meta[name="csrf-token"]')?.content ?? "";

export class ApiError extends Error {
  constructor(status, problem) {
    super(problem.detail ?? `The server answered ${status}.`);
    this.status = status;
    this.problem = problem;
  }
}

/** GET or send JSON below /api/v1; resolves to the answer, rejects with ApiError or TypeError (no connection). */
export async function api(path, { method = "GET", body, signal } = {}) {
  const response = await fetch(`/api/v1${path}`, {
    method,
    signal,
    headers: { Accept: "application/json", "X-CSRF-Token": csrfToken(), ...(body ? { "Content-Type": "application/json" } : {}) },
    body: body ? JSON.stringify(body) : undefined,
  });
  // The session has ended: the page asks to sign in and comes back here.
  if (response.status === 401) location.reload();
  if (!response.ok) throw new ApiError(response.status, await response.json().catch(() => ({})));
  return response.status === 204 ? null : response.json();
}
