// Ends the operator's session; the chat stays.
document.addEventListener('click', async event => {
  if (!event.target.closest('[data-log-out]')) return;
  await fetch('/api/logout', {method: 'POST'});
  location.assign('/login');
});

// A dataset goes to the API as it is, once: the page takes no files.
document.addEventListener('submit', async event => {
  const form = event.target;
  if (form.id !== 'import') return;
  event.preventDefault();
  const told = document.getElementById('imported'), button = form.querySelector('button');
  const given = new FormData(form), file = given.get('file'), limit = Number(form.dataset.limit);
  if (button.disabled) return;
  if (file.size > limit) {
    told.textContent = `Nothing was imported: the file has more than ${limit >> 20} MB. Import it in parts.`;
    return;
  }
  told.textContent = 'Importing …';
  button.disabled = true;
  const address = `/api/import?format=${given.get('format')}&as=${given.get('as')}`;
  const answer = await fetch(address, {method: 'POST', body: file}).catch(() => null);
  const said = await answer?.json().catch(() => null);
  button.disabled = false;
  told.textContent = !said ? 'The connection was lost. It may have been imported: look at the log before you try again.'
    : answer.ok ? `Imported: ${said.votes} votes, ${said.demonstrations} demonstrations, ${said.prompts} prompts; ${said.skipped} rows left out.`
    : `Nothing was imported: ${said.error?.message ?? answer.status}`;
  form.dispatchEvent(new Event('imported', {bubbles: true}));  // the lists and the log are drawn anew
});
